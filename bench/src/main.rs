//! `pyralog-bench`: see `bench/README.md`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pyralog_bench::cli::{
    Cli, Command, CompareArgs, DEFAULT_RATE, DiskArgs, FailoverArgs, IdleArgs, LifeArgs, Output, PairsArgs,
    RecoveryArgs, StoppedArgs,
};
use pyralog_bench::cluster::failover::{self, FailoverConfig};
use pyralog_bench::cluster::idle::{self, IdleConfig};
use pyralog_bench::cluster::life::{self, LifeConfig};
use pyralog_bench::cluster::recovery::{self, RecoveryConfig};
use pyralog_bench::cluster::stopped::{self, StoppedConfig};
use pyralog_bench::commands::{self, show};
use pyralog_bench::compare::{self, CompareConfig, Peer};
use pyralog_bench::host::HostFacts;
use pyralog_bench::latency::Summary;
use pyralog_bench::pairs::PairsConfig;
use pyralog_bench::{disk, pairs, torture};
use serde_json::json;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::FloorServer(args) => commands::floor_server(args),
        Command::Floor(args) => commands::floor(args),
        Command::Produce(args) => commands::produce(&args),
        Command::Consume(args) => commands::consume(&args),
        Command::Mixed(args) => commands::mixed(&args),
        Command::Sweep(args) => commands::sweep(&args),
        Command::Report(args) => commands::report(&args),
        Command::Pairs(args) => run_pairs(args),
        Command::Compare(args) => run_compare(args),
        Command::Failover(args) => run_failover(args),
        Command::Life(args) => run_life(args),
        Command::StoppedFollower(args) => run_stopped(args),
        Command::Recovery(args) => run_recovery(args),
        Command::IdleGroups(args) => run_idle(args),
        Command::Disk(args) => run_disk(&args),
        Command::Torture(what) => torture::run(&what),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pyralog-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_pairs(args: PairsArgs) -> anyhow::Result<()> {
    pairs::ensure_program(&args.server)?;
    let report = pairs::run(&PairsConfig {
        server: args.server,
        cluster: args.cluster,
        dir: args.dir,
        pairs: args.pairs as usize,
        shape: args.load.shape(),
        connections: args.load.connections as usize,
        batch: args.load.batch(),
        server_cpu: args.server_cpu,
        client_cpu: args.client_cpu,
        floor_writes_in_flight: args.floor_writes_in_flight as usize,
        live: args.out.mode(),
    })?;
    show(args.output, &report.to_table(), &report.to_json());
    report.into_run().write_if_asked(args.out.files("pairs").as_ref())
}

fn run_compare(args: CompareArgs) -> anyhow::Result<()> {
    let report = compare::run(&CompareConfig {
        // Those given, and not all that there are: a single node chooses for itself.
        cpus: args.cluster.cpus,
        server: args.cluster.server,
        dir: args.cluster.dir,
        programs: args.programs,
        peers: if args.peers.is_empty() { Peer::ALL.to_vec() } else { args.peers },
        nodes: args.nodes,
        rounds: args.rounds as usize,
        shape: args.load.shape(),
        connections: args.load.connections as usize,
        batch: args.load.batch(),
        live: args.out.mode(),
    })?;
    show(args.cluster.output, &report.to_table(), &report.to_json());
    let failures = report.failures().len();
    report.into_run().write_if_asked(args.out.files("compare").as_ref())?;
    anyhow::ensure!(failures == 0, "{failures} of the systems could not be measured to the end");
    Ok(())
}

fn run_failover(args: FailoverArgs) -> anyhow::Result<()> {
    let report = failover::run(&FailoverConfig {
        cpus: args.cluster.cpus(),
        server: args.cluster.server,
        dir: args.cluster.dir,
        times: args.times as usize,
        how: args.how,
        producers: args.producers as usize,
    })?;
    show(args.cluster.output, &format!("{}\n{}", HostFacts::collect(), report.to_table()), &report.to_json());
    report.into_run()?.write_if_asked(args.files.of("failover").as_ref())
}

fn run_life(args: LifeArgs) -> anyhow::Result<()> {
    let report = life::run(&LifeConfig {
        cpus: args.cluster.cpus(),
        server: args.cluster.server,
        dir: args.cluster.dir,
        length: Duration::from_secs(60 * args.minutes),
        rate: args.rate,
        producers: args.producers,
        partitions: args.partitions,
    })?;
    show(args.cluster.output, &format!("{}\n{}", HostFacts::collect(), report.to_table()), &report.to_json());
    report.into_run().write_if_asked(args.files.of("life").as_ref())
}

fn run_stopped(args: StoppedArgs) -> anyhow::Result<()> {
    let report = stopped::run(&StoppedConfig {
        cpus: args.cluster.cpus(),
        server: args.cluster.server,
        dir: args.cluster.dir,
        rounds: args.rounds as usize,
        shape: args.load.shape(),
        connections: args.load.connections as usize,
        batch: args.load.batch(),
        live: args.out.mode(),
    })?;
    show(args.cluster.output, &format!("{}\n{}", HostFacts::collect(), report.to_table()), &report.to_json());
    report.into_run().write_if_asked(args.out.files("stopped-follower").as_ref())
}

fn run_recovery(args: RecoveryArgs) -> anyhow::Result<()> {
    let report = recovery::run(&RecoveryConfig {
        cpus: args.cluster.cpus(),
        server: args.cluster.server,
        dir: args.cluster.dir,
        bytes: args.mib << 20,
        rounds: args.rounds as usize,
        alone: args.alone as usize,
        shape: args.load.shape_at(DEFAULT_RATE),
        connections: args.load.connections as usize,
        batch: args.load.batch(),
        live: args.out.mode(),
    })?;
    show(args.cluster.output, &format!("{}\n{}", HostFacts::collect(), report.to_table()), &report.to_json());
    report.into_run().write_if_asked(args.out.files("recovery").as_ref())
}

fn run_idle(args: IdleArgs) -> anyhow::Result<()> {
    let report = idle::run(&IdleConfig {
        cpus: args.cluster.cpus(),
        server: args.cluster.server,
        dir: args.cluster.dir,
        groups: args.groups,
        settle: Duration::from_secs(args.settle),
        watched: Duration::from_secs(args.seconds),
    })?;
    show(args.cluster.output, &format!("{}\n{}", HostFacts::collect(), report.to_table()), &report.to_json());
    Ok(())
}

fn run_disk(args: &DiskArgs) -> anyhow::Result<()> {
    let figures = disk::measure(&args.dir, args.file_mib << 20, args.appends as usize)?;
    match args.output {
        Output::Table => {
            println!("{}", HostFacts::collect());
            let mb = |bytes_per_second: f64| bytes_per_second / 1e6;
            println!(
                "sequential write, 1 MiB, depth {}, durable {:9.0} MB/s",
                disk::DEPTH,
                mb(figures.write_bytes_per_second)
            );
            println!(
                "sequential read,  1 MiB, depth {}          {:9.0} MB/s",
                disk::DEPTH,
                mb(figures.read_bytes_per_second)
            );
            println!(
                "first touch of memory, huge pages        {:9.0} MB/s",
                mb(figures.touch_bytes_per_second)
            );
            println!("4 KiB durable appends, one at a time\n{}\n{}", Summary::HEADS, figures.append);
        }
        Output::Json => println!(
            "{}",
            json!({
                "write_bytes_per_second": figures.write_bytes_per_second,
                "read_bytes_per_second": figures.read_bytes_per_second,
                "touch_bytes_per_second": figures.touch_bytes_per_second, "append": figures.append.to_json(),
            })
        ),
    }
    Ok(())
}
