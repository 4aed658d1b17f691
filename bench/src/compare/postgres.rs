//! PostgreSQL with two standbys, `synchronous_standby_names = ANY 1`: a commit returns when its log is on stable storage here and
//! on one of them. Driven by its own load generator, pgbench, with prepared statements.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::latency::Latencies;
use crate::load::LoadShape;
use crate::pairs::Side;
use crate::process::free_loopback_addrs;

const STANDBYS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// Memory for pages and room for the log that the load never fills: nothing but commits goes to the disk meanwhile.
const SETTINGS: &str = "listen_addresses = '127.0.0.1'
synchronous_commit = on
fsync = on
wal_level = replica
shared_buffers = 256MB
max_wal_size = 8GB
checkpoint_timeout = 30min
autovacuum = off
";

/// The three servers; stopped when dropped.
pub struct Postgres {
    programs: PathBuf,
    dir: PathBuf,
    user: Option<(u32, u32)>,
    /// Of the primary, then of the standbys.
    ports: Vec<u16>,
}

impl Postgres {
    /// Starts them below `dir`.
    pub fn start(programs: Option<&Path>, dir: &Path, record_bytes: usize) -> anyhow::Result<Self> {
        let programs = match programs {
            Some(programs) => programs.to_owned(),
            None => newest_version()?,
        };
        let dir = dir.join("postgres");
        fs::create_dir(&dir)?;
        let user = other_user()?;
        if let Some((uid, gid)) = user {
            chown(&dir, Some(uid), Some(gid))?;
            // The folder above is only ours, and theirs has to be reached through it.
            let above = dir.parent().context("no folder above")?;
            fs::set_permissions(above, fs::Permissions::from_mode(0o755))?;
        }
        let ports = free_loopback_addrs(STANDBYS + 1)?.iter().map(SocketAddr::port).collect();
        let postgres = Self { programs, dir, user, ports };
        postgres.start_primary(record_bytes)?;
        (1..=STANDBYS).try_for_each(|number| postgres.start_standby(number))?;
        postgres.await_standbys()?;
        Ok(postgres)
    }

    fn start_primary(&self, record_bytes: usize) -> anyhow::Result<()> {
        let data = self.data(0);
        self.call("initdb", &["--auth=trust", "--no-sync", "--username=bench", "-D", &data])?;
        let names = "synchronous_standby_names = 'ANY 1 (standby1, standby2)'\n";
        self.append(&format!("{data}/postgresql.conf"), &format!("{SETTINGS}{names}{}", self.place(0)?))?;
        self.append(&format!("{data}/pg_hba.conf"), "host replication all 127.0.0.1/32 trust\n")?;
        self.serve(0)?;
        // The value stays as it is, neither compressed nor moved to a table of its own.
        let table = "set synchronous_commit = local; create table log (id bigserial, value bytea); \
                     alter table log alter value set storage plain";
        self.sql(table)?;
        let value: String =
            (0..record_bytes).map(|at| format!("{:02x}", (at.wrapping_mul(151) >> 2) as u8)).collect();
        fs::write(self.dir.join("insert.sql"), format!("insert into log (value) values ('\\x{value}');\n"))?;
        Ok(())
    }

    fn start_standby(&self, number: usize) -> anyhow::Result<()> {
        let data = self.data(number);
        let primary = format!("{} application_name=standby{number}", self.primary()?);
        self.call(
            "pg_basebackup",
            &["-d", &primary, "-D", &data, "-R", "-X", "stream", "--checkpoint=fast"],
        )?;
        let config = format!("{}synchronous_standby_names = ''\n", self.place(number)?);
        self.append(&format!("{data}/postgresql.conf"), &config)?;
        self.serve(number)
    }

    fn await_standbys(&self) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        let count =
            "select count(*) from pg_stat_replication where sync_state = 'quorum' and state = 'streaming'";
        while self.sql(count)?.trim() != STANDBYS.to_string() {
            anyhow::ensure!(Instant::now() < end, "PostgreSQL's standbys have not come along in time");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// One run of pgbench, after its warm-up. Its log holds the time of every transaction.
    pub fn run(&self, connections: usize, shape: LoadShape) -> anyhow::Result<Side> {
        self.await_standbys()?;
        if !shape.warmup.is_zero() {
            self.pgbench(connections, shape.warmup, &[])?;
        }
        let prefix = self.dir.join("transactions").to_string_lossy().into_owned();
        let report = self.pgbench(connections, shape.measured, &["--log", "--log-prefix", &prefix])?;
        let mut latencies = Latencies::new()?;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("transactions.")) {
                continue;
            }
            add_transactions(&fs::read_to_string(&path)?, &mut latencies)?;
            fs::remove_file(&path)?;
        }
        anyhow::ensure!(latencies.count() > 0, "pgbench made no transactions: {report}");
        let acks_per_second = latencies.count() as f64 / shape.measured.as_secs_f64();
        Ok(Side { latency: latencies.summary(), acks_per_second })
    }

    fn pgbench(&self, connections: usize, time: Duration, more: &[&str]) -> anyhow::Result<String> {
        let (count, seconds) = (connections.to_string(), time.as_secs().max(1).to_string());
        let (port, script) = (self.port(0)?.to_string(), self.dir.join("insert.sql"));
        let script = script.to_string_lossy();
        let mut arguments =
            vec!["-h", "127.0.0.1", "-p", &port, "-U", "bench", "-n", "-M", "prepared", "-j", "1"];
        arguments.extend(["-c", &count, "-T", &seconds, "-f", &script]);
        arguments.extend(more);
        arguments.push("postgres");
        self.call("pgbench", &arguments)
    }

    /// Version and the settings that decide when a commit returns, as the server has them.
    pub fn describe(&self) -> anyhow::Result<String> {
        let settings = "select 'PostgreSQL ' || current_setting('server_version') || ', synchronous_commit ' \
                        || current_setting('synchronous_commit') || ', ' || current_setting('synchronous_standby_names') \
                        || ', fsync ' || current_setting('fsync') || ' by ' || current_setting('wal_sync_method')";
        Ok(self.sql(settings)?.trim().to_owned())
    }

    /// Stops all of them.
    pub fn stop(&self) -> anyhow::Result<()> {
        (0..=STANDBYS).rev().try_for_each(|number| self.end(number))
    }

    fn end(&self, number: usize) -> anyhow::Result<()> {
        let data = self.data(number);
        if Path::new(&data).join("postmaster.pid").exists() {
            self.call("pg_ctl", &["-D", &data, "-m", "immediate", "-w", "stop"])?;
        }
        Ok(())
    }

    fn serve(&self, number: usize) -> anyhow::Result<()> {
        let log = self.dir.join(format!("{number}.log"));
        let started =
            self.call("pg_ctl", &["-D", &self.data(number), "-l", &log.to_string_lossy(), "-w", "start"]);
        let told = || format!("its log says:\n{}", fs::read_to_string(&log).unwrap_or_default());
        started.map(drop).with_context(told)
    }

    fn sql(&self, text: &str) -> anyhow::Result<String> {
        let port = self.port(0)?.to_string();
        self.call("psql", &["-h", "127.0.0.1", "-p", &port, "-U", "bench", "-qAt", "-c", text, "postgres"])
    }

    fn primary(&self) -> anyhow::Result<String> {
        Ok(format!("host=127.0.0.1 port={} user=bench", self.port(0)?))
    }

    fn port(&self, number: usize) -> anyhow::Result<u16> {
        self.ports.get(number).copied().context("no such server")
    }

    fn data(&self, number: usize) -> String {
        self.dir.join(format!("data-{number}")).to_string_lossy().into_owned()
    }

    fn place(&self, number: usize) -> anyhow::Result<String> {
        Ok(format!("port = {}\nunix_socket_directories = '{}'\n", self.port(number)?, self.dir.display()))
    }

    fn append(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let mut file = fs::File::options().append(true).open(path).with_context(|| path.to_owned())?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        Ok(())
    }

    /// Runs one of its programs to its end; as another user where this one is root, as PostgreSQL refuses root.
    fn call(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let path = self.programs.join(program);
        let output = self.dir.join("output");
        let mut command = Command::new(&path);
        command.args(arguments).current_dir(&self.dir).stdin(Stdio::null()).env_clear().env("LC_ALL", "C");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        // Into a file: a server that is started keeps the descriptors, and a pipe would never end.
        let file = fs::File::create(&output)?;
        let status = command.stdout(file.try_clone()?).stderr(file).status();
        let status = status.with_context(|| format!("can't run {}", path.display()))?;
        let text = fs::read_to_string(&output)?;
        anyhow::ensure!(status.success(), "{program} failed ({status}):\n{text}");
        Ok(text)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        for number in 0..=STANDBYS {
            // An error has been told before, or there is nobody to tell.
            let _ = self.end(number);
        }
    }
}

/// Lines of pgbench's log: client, transaction, latency in µs, and more.
fn add_transactions(log: &str, latencies: &mut Latencies) -> anyhow::Result<()> {
    for line in log.lines() {
        let latency_us: u64 = line
            .split(' ')
            .nth(2)
            .and_then(|word| word.parse().ok())
            .with_context(|| format!("pgbench's log: {line:?} is not in the known format"))?;
        latencies.record_ns(latency_us * 1_000);
    }
    Ok(())
}

fn newest_version() -> anyhow::Result<PathBuf> {
    let usual = Path::new("/usr/lib/postgresql");
    let versions = fs::read_dir(usual).into_iter().flatten().flatten();
    let version = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().ok();
    let newest = versions.filter_map(|entry| Some((version(&entry)?, entry.path().join("bin")))).max();
    let newest = newest.filter(|(_, programs)| programs.join("pgbench").is_file());
    newest.map(|(_, programs)| programs).context(
        "no PostgreSQL below /usr/lib/postgresql; install the package postgresql, or name its programs' folder with \
         --postgres",
    )
}

/// Whom to run as when this is root: the first of the users that are there for such things.
fn other_user() -> anyhow::Result<Option<(u32, u32)>> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let found = find("postgres").or_else(|| find("nobody"));
    found.map(Some).context("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_word_of_each_line_is_the_latency() {
        let mut latencies = Latencies::new().unwrap();
        add_transactions("0 0 1354 0 1700000000 12\n3 17 650 0 1700000000 99\n", &mut latencies).unwrap();
        assert_eq!(latencies.count(), 2);
        assert!((latencies.quantile_us(1.0) - 1354.0).abs() < 2.0);
        add_transactions("no log at all\n", &mut latencies).unwrap_err();
    }
}
