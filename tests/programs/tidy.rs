//! What the documentation says of the tree, held against the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Rust files below `folder`, build output left out.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_test_that_the_durability_page_names_exists() {
    let page = fs::read_to_string(root().join("docs/durability.md")).unwrap();
    let named: Vec<(&str, &str)> = page
        .split('`')
        .filter_map(|quoted| quoted.split_once(".rs: "))
        .filter(|(file, _)| file.contains('/'))
        .collect();
    assert!(named.len() >= 20, "the page names its tests as `path/file.rs: name`");
    for (file, test) in named {
        let path = root().join(format!("{file}.rs"));
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(source.contains(&format!("fn {test}(")), "{file}.rs has no test {test}");
    }
    // And every T that a cell refers to is in the last table.
    let defined = |name: &str| page.contains(&format!("| {name} |"));
    let (mut cells, mut used) = (0, BTreeSet::new());
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| T")) {
        let row: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        if row.len() != 4 || row[0] == "fault" || row[0] == "---" {
            continue;
        }
        for cell in &row[1..] {
            let names: Vec<&str> = tests_in(cell).collect();
            assert!(!names.is_empty(), "`{}`: no test for `{cell}`", row[0]);
            names.iter().for_each(|name| assert!(defined(name), "{name} is used and not defined"));
            used.extend(names);
            cells += 1;
        }
    }
    assert!(cells >= 3 * 25, "two tables of faults, with three columns each: {cells} cells");
    assert!(used.len() >= 35, "{used:?}");
}

/// The `T1` and so on in a text.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| word.strip_prefix('T').is_some_and(|number| number.parse::<u16>().is_ok()))
}

#[test]
fn every_test_that_the_replication_page_names_exists() {
    let page = fs::read_to_string(root().join("docs/replication.md")).unwrap();
    let is_test = |name: &&str| {
        name.matches('_').count() >= 3 && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
    };
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let named: BTreeSet<&str> =
        rows.flat_map(|row| row.split('`').skip(1).step_by(2)).filter(is_test).collect();
    assert!(named.len() >= 30, "the tables name the tests: {named:?}");
    let mut files = Vec::new();
    sources(root(), &mut files);
    let sources: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    for test in named {
        let declared = format!("fn {test}(");
        assert!(sources.iter().any(|source| source.contains(&declared)), "there is no test {test}");
    }
}

#[test]
fn every_page_that_a_page_links_to_exists() {
    let pages = [
        "README.md",
        "bench/README.md",
        "docs/architecture.md",
        "docs/benchmarks/peers.md",
        "docs/clients.md",
        "docs/durability.md",
        "docs/performance.md",
        "docs/decisions/README.md",
        "docs/operations/monitoring.md",
        "docs/operations/scaling.md",
        "docs/operations/upgrade.md",
        "docs/protocol.md",
        "docs/replication.md",
    ];
    for page in pages {
        let path = root().join(page);
        let text = fs::read_to_string(&path).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in links.filter(|link| !link.is_empty() && !link.contains("://")) {
            assert!(path.parent().unwrap().join(link).exists(), "{page} links to {link}");
        }
    }
}

#[test]
fn files_stay_readable() {
    let mut files = Vec::new();
    sources(root(), &mut files);
    assert!(files.len() > 100);
    for file in files {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 1_000, "{} has {lines} lines; split it", file.display());
    }
}
