//! `floor` and `floor-server`.

use std::io::Write;
use std::time::Duration;

use super::show;
use crate::cli::FloorServerArgs;
use crate::floor::probe::{self, ProbeConfig};
use crate::floor::{FloorConfig, FloorServer};
use crate::options::FloorArgs;
use crate::produce::{self, BatchShape};

/// Serves until it is killed.
///
/// # Errors
/// When the address or the folder is refused, or the disk fails.
pub fn floor_server(args: FloorServerArgs) -> anyhow::Result<()> {
    let server = FloorServer::bind(FloorConfig {
        listen: args.listen,
        dir: args.dir,
        file_bytes: args.file_mib << 20,
        cpu: args.cpu,
        writes_in_flight: args.writes_in_flight as usize,
        reply_body_bytes: produce::produce_reply_body_bytes(),
        spin: args.spin,
        followers: args.followers,
    })?;
    println!("listening on {}", server.local_addr()?);
    std::io::stdout().flush()?;
    server.run()?;
    Ok(())
}

/// Measures the floors and prints them.
///
/// # Errors
/// When the machine refuses something that is measured.
pub fn floor(args: FloorArgs) -> anyhow::Result<()> {
    let files = args.out.files("floor");
    let report = probe::run(&ProbeConfig {
        dir: args.dir,
        time: Duration::from_secs(args.seconds),
        rounds: args.rounds,
        server_cpu: args.server_cpu,
        client_cpu: args.client_cpu,
        batch: BatchShape { records: 1, record_bytes: args.record_bytes as usize },
    })?;
    let table = report.to_table();
    let run = report.into_run();
    show(args.output, &table, &run.to_json("floor")?);
    run.write_if_asked(files.as_ref())
}
