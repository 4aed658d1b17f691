//! What format 4 looks like, kept for ever: the file is never written again, only read. A newer format gets a file of its own: copy the
//! test, give the file a name that is not there, and run it once with `BLESS=1`, which writes what is missing and nothing else.

use super::*;

/// Commands of every kind, in an order in which all pass; those of the first level come before the second.
fn commands() -> Vec<Command> {
    let mut catalog = Catalog::default();
    let mut said = Vec::new();
    let mut say = |catalog: &mut Catalog, command: Command| {
        catalog.apply(&command).unwrap();
        said.push(command);
    };
    for id in 1..=4 {
        say(&mut catalog, Command::RegisterNode(node(id, 2)));
    }
    let lists = vec![vec![replica(1, 0), replica(2, 0), replica(3, 0)]; 2];
    say(&mut catalog, Command::CreateTopic(spec("orders", Assignment::new(&lists).unwrap())));
    say(&mut catalog, Command::CreateTopic(spec("gone", Assignment::new(&lists[..1]).unwrap())));
    say(&mut catalog, Command::DeleteTopic { topic: 2 });
    say(&mut catalog, Command::ReserveProducerIds { count: 1_000 });
    say(&mut catalog, Command::RaiseFeatureLevel { level: 2 });
    say(&mut catalog, Command::RegisterNode(NodeInfo { rack: "east".into(), ..node(1, 2) }));
    say(&mut catalog, reassign(1, 1, &[2, 3, 4]));
    let end = walked(&catalog, GroupId::new(1, 1));
    say(&mut catalog, reassigned(1, 1, end));
    let added = vec![vec![replica(3, 1), replica(2, 0), replica(1, 1)]];
    let (retention_bytes, retention_ms) = (1 << 30, -1);
    let quorums = (2, 2, 2);
    say(
        &mut catalog,
        Command::AlterTopic {
            topic: 1,
            replication_factor: 3,
            quorums,
            retention_bytes,
            retention_ms,
            added,
        },
    );
    say(&mut catalog, Command::RegisterNode(node(5, 1)));
    say(&mut catalog, Command::RemoveNode { node: 5 });
    say(&mut catalog, Command::AddNode { node: 5, internal_address: "five:9093".into() });
    say(&mut catalog, reassign(1, 0, &[1, 2, 4]));
    said
}

fn written(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn version_4_is_read() {
    let commands = commands();
    let mut catalog = Catalog::default();
    commands.iter().for_each(|command| catalog.apply(command).unwrap());
    assert_eq!(
        (catalog.moves.len(), catalog.settled.len(), catalog.grown.len(), catalog.removed.len()),
        (1, 1, 1, 1)
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/metadata/fixtures/format-4.txt");
    if std::env::var_os("BLESS").is_some() && !std::path::Path::new(path).exists() {
        let lines = commands.iter().map(|command| format!("command {}\n", written(&command.encode())));
        let text = lines.collect::<String>() + &format!("catalog {}\n", written(&catalog.encode()));
        std::fs::write(path, text).unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap();
    let mut read = Vec::new();
    for line in text.lines() {
        let (kind, hex) = line.split_once(' ').unwrap();
        let digits = hex.as_bytes().chunks(2).map(|digits| std::str::from_utf8(digits).unwrap());
        let bytes: Vec<u8> = digits.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect();
        assert_eq!(bytes[0], 4);
        match kind {
            "catalog" => assert_eq!(Catalog::decode(&bytes).unwrap(), catalog),
            _ => read.push(Command::decode(&bytes).unwrap()),
        }
    }
    assert_eq!(read, commands);
}
