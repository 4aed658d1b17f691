//! PostgreSQL. With two standbys and `synchronous_standby_names = 'ANY 1 (...)'` a commit returns when its log is on stable storage
//! here and on one of them.

mod wire;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;

use super::server::{self, RunAs, Server, await_ok};
use super::system::{Plan, Running, System};
use crate::load::LoadConnection;
use crate::process::free_loopback_addrs;
use wire::{Inserts, Session};

const TABLE: &str = "log";
/// Memory for pages and room for the log that the load never fills: nothing but commits goes to the disk meanwhile.
const SETTINGS: &str = "listen_addresses = '127.0.0.1'
synchronous_commit = on
fsync = on
full_page_writes = on
wal_level = replica
shared_buffers = 256MB
max_wal_size = 8GB
checkpoint_timeout = 30min
autovacuum = off
max_connections = 1000
";
/// Log segments of 16 MiB that are there when the load begins, so that it doesn't wait for new ones to be filled with zeros.
const SEGMENTS_READY: usize = 16;

/// The programs.
pub(super) struct Postgres {
    programs: PathBuf,
    version: String,
    user: RunAs,
}

impl Postgres {
    /// The newest version that Debian's packages have installed, unless the folders given hold one.
    pub(super) fn find(folders: &[PathBuf]) -> anyhow::Result<Self> {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let number = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().ok();
        let newest = versions.filter_map(|entry| Some((number(&entry)?, entry.path().join("bin")))).max();
        let usual: Vec<PathBuf> = newest.into_iter().map(|(_, programs)| programs).collect();
        let programs = server::find_folder(&["postgres", "initdb", "pg_basebackup"], folders, &usual)
            .context("not installed; to install: apt-get install postgresql")?;
        let program = programs.join("postgres");
        let version = server::first_line(&program, "--version")?;
        Ok(Self { programs, version, user: server::other_user_than_root(&["postgres", "nobody"])? })
    }

    /// Runs one of its programs to its end; as another user where this one is root, as PostgreSQL refuses root.
    fn call(&self, dir: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = server::command(&self.programs.join(program), self.user);
        command.args(arguments).current_dir(dir).stdin(Stdio::null()).env_clear().env("LC_ALL", "C");
        let output = command.output().with_context(|| format!("can't run {program}"))?;
        let text = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{program} failed ({}):\n{text}", output.status);
        Ok(())
    }

    fn serve(&self, dir: &Path, data: &Path, addr: SocketAddr) -> anyhow::Result<Server> {
        let mut command = server::command(&self.programs.join("postgres"), self.user);
        command.arg("-D").arg(data).current_dir(dir).env_clear().env("LC_ALL", "C");
        let log = data.with_extension("log");
        // SIGINT: connections are ended, too.
        let mut server = Server::start("PostgreSQL", &mut command, &log, libc::SIGINT)?;
        server.await_ready(|| Session::connect(addr).map(drop))?;
        Ok(server)
    }

    fn start_primary(&self, dir: &Path, addr: SocketAddr, standbys: &[String]) -> anyhow::Result<Server> {
        let data = dir.join("data-0");
        let path = data.to_string_lossy();
        self.call(dir, "initdb", &["--auth=trust", "--no-sync", "--username=bench", "-D", &path])?;
        let names = match standbys {
            [] => String::new(),
            names => format!("ANY 1 ({})", names.join(", ")),
        };
        append(&data, "postgresql.conf", &format!("{SETTINGS}{}", place(dir, addr, &names)))?;
        append(&data, "pg_hba.conf", "host replication all 127.0.0.1/32 trust\n")?;
        let server = self.serve(dir, &data, addr)?;
        let mut session = Session::connect(addr)?;
        // There is no standby yet to wait for.
        session.query("set synchronous_commit = local")?;
        session.query(&format!("create table {TABLE} (id bigserial, value bytea)"))?;
        // The value stays as it is, neither compressed nor moved to a table of its own.
        session.query(&format!("alter table {TABLE} alter value set storage plain"))?;
        // Segments that a checkpoint finds used up become the next ones.
        for _ in 0..SEGMENTS_READY {
            session.query(&format!("insert into {TABLE} (value) values ('')"))?;
            session.query("select pg_switch_wal()")?;
        }
        session.query("checkpoint")?;
        Ok(server)
    }

    fn start_standby(
        &self,
        dir: &Path,
        number: usize,
        addr: SocketAddr,
        primary: SocketAddr,
    ) -> anyhow::Result<Server> {
        let data = dir.join(format!("data-{number}"));
        let source = format!(
            "host=127.0.0.1 port={} user=bench application_name={}",
            primary.port(),
            standby_name(number)
        );
        let path = data.to_string_lossy();
        self.call(
            dir,
            "pg_basebackup",
            &["-d", &source, "-D", &path, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"],
        )?;
        append(&data, "postgresql.conf", &place(dir, addr, ""))?;
        self.serve(dir, &data, addr)
    }
}

fn standby_name(number: usize) -> String {
    format!("standby{number}")
}

fn place(dir: &Path, addr: SocketAddr, standbys: &str) -> String {
    format!(
        "port = {}\nunix_socket_directories = '{}'\nsynchronous_standby_names = '{standbys}'\n",
        addr.port(),
        dir.display()
    )
}

fn append(data: &Path, file: &str, text: &str) -> anyhow::Result<()> {
    let path = data.join(file);
    let mut file =
        fs::File::options().append(true).open(&path).with_context(|| path.display().to_string())?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    Ok(())
}

impl System for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self, plan: &Plan) -> String {
        let insert = match plan.batch.records {
            1 => "a prepared insert of one row".to_owned(),
            records => format!("a prepared insert of {records} rows"),
        };
        let standbys = match plan.nodes {
            1 => String::new(),
            _ => ", synchronous_standby_names ANY 1 of two standbys".to_owned(),
        };
        format!("fsync on, synchronous_commit on{standbys}; {insert}")
    }

    fn start(&self, dir: &Path, plan: &Plan) -> anyhow::Result<Box<dyn Running>> {
        server::create_folder(dir, self.user)?;
        let addrs = free_loopback_addrs(plan.nodes)?;
        let (primary, standbys) = server::leader_and_rest(&addrs)?;
        let names: Vec<String> = (1..=standbys.len()).map(standby_name).collect();
        let mut servers = vec![self.start_primary(dir, primary, &names)?];
        for (number, addr) in (1..).zip(standbys) {
            servers.push(self.start_standby(dir, number, *addr, primary)?);
        }
        await_ok("PostgreSQL's standbys do not stream", || {
            let streaming = "select count(*) from pg_stat_replication where sync_state = 'quorum' and state = 'streaming'";
            let rows = Session::connect(primary)?.query(streaming)?;
            anyhow::ensure!(rows == [standbys.len().to_string()], "{rows:?} of {} do", standbys.len());
            Ok(())
        })?;
        Ok(Box::new(Servers { servers, primary }))
    }
}

struct Servers {
    /// The primary, then the standbys.
    servers: Vec<Server>,
    primary: SocketAddr,
}

impl Running for Servers {
    fn connect(&mut self, plan: &Plan) -> anyhow::Result<Vec<LoadConnection>> {
        let (statement, parameter_type) = Inserts::statement(TABLE, plan.batch);
        let connect = |_| {
            let mut session = Session::connect(self.primary)?;
            // As the server has them, whatever its files say.
            for (setting, wanted) in [("synchronous_commit", "on"), ("fsync", "on")] {
                let found = session.query(&format!("show {setting}"))?;
                anyhow::ensure!(found == [wanted], "PostgreSQL: {setting} is {found:?}");
            }
            session.prepare(&statement, parameter_type)?;
            Ok(LoadConnection { socket: session.into_socket(), protocol: Box::new(Inserts::new(plan.batch)) })
        };
        (0..plan.connections).map(connect).collect()
    }

    fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.servers.iter_mut().try_for_each(Server::ensure_running)
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        // The standbys first: a primary waits for them.
        self.servers.into_iter().rev().try_for_each(Server::stop)
    }
}
