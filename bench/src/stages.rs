//! Where a write's time went, on the nodes' own word: the histograms of `GET /metrics`, after a run less before it.
//!
//! Nothing here knows which histograms there are: every family `pyralog_*_seconds` that isn't about reading is shown,
//! one row for each combination of labels other than shard and peer. So a stage that a node learns to tell shows up by itself.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

/// How long a page may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest page taken: a hundred times what a node with 256 shards sends.
const MOST_BYTES: u64 = 64 << 20;

/// The buckets of one histogram, summed over shards and nodes.
#[derive(Clone, Debug, Default, PartialEq)]
struct Buckets {
    /// `(upper bound in seconds, how many are not above it)`, in the order of the bounds.
    cumulative: Vec<(f64, f64)>,
    sum_s: f64,
    count: f64,
}

/// All histograms of some pages, by family and labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot(BTreeMap<String, Buckets>);

/// What one stage took between two snapshots, microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The family without `pyralog_` and `_seconds`, and its labels.
    pub name: String,
    /// How often.
    pub count: u64,
    /// Exact.
    pub mean_us: f64,
    /// Approximate: within a bucket, as if its values were evenly spread.
    pub p50_us: f64,
    /// Approximate, too; infinite when it is above every bucket's bound.
    pub p99_us: f64,
}

impl Snapshot {
    /// Asks all of these nodes.
    ///
    /// # Errors
    /// When one does not answer, or not with metrics.
    pub fn take(nodes: &[SocketAddr]) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for node in nodes {
            all.add(&page(*node)?);
        }
        Ok(all)
    }

    /// Adds what a page says.
    fn add(&mut self, page: &str) {
        for sample in page.lines().filter_map(Sample::parse) {
            let Some((family, part)) = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|part| Some((sample.name.strip_suffix(part)?, *part)))
            else {
                continue;
            };
            if !is_about_writes(family) {
                continue;
            }
            let buckets = self.0.entry(sample.key(family)).or_default();
            match part {
                "_sum" => buckets.sum_s += sample.value,
                "_count" => buckets.count += sample.value,
                _ => {
                    if let Some(bound_s) = sample.label("le").and_then(parse_bound) {
                        buckets.add(bound_s, sample.value);
                    }
                }
            }
        }
    }

    /// What happened since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let empty = Buckets::default();
        let less = |(name, after): (&String, &Buckets)| {
            (name.clone(), after.less(before.0.get(name).unwrap_or(&empty)))
        };
        Self(self.0.iter().map(less).collect())
    }

    /// Adds what happened in another time.
    pub fn merge(&mut self, other: &Self) {
        for (name, buckets) in &other.0 {
            self.0.entry(name.clone()).or_default().merge(buckets);
        }
    }

    /// Every stage that a write went through, the longest ones first.
    pub fn stages(&self) -> Vec<Stage> {
        let stages = self.0.iter().map(|(name, buckets)| buckets.stage(name));
        let mut stages: Vec<Stage> = stages.filter(|stage| stage.count > 0).collect();
        stages.sort_by(|a, b| b.mean_us.total_cmp(&a.mean_us));
        stages
    }
}

/// Families of seconds; those that say that they are about reading are not asked for here.
fn is_about_writes(family: &str) -> bool {
    family.starts_with("pyralog_")
        && family.ends_with("_seconds")
        && !["fetch", "read", "consume"].iter().any(|word| family.contains(word))
}

fn parse_bound(text: &str) -> Option<f64> {
    if text == "+Inf" { Some(f64::INFINITY) } else { text.parse().ok() }
}

impl Buckets {
    fn add(&mut self, bound_s: f64, count: f64) {
        match self.cumulative.binary_search_by(|bucket| bucket.0.total_cmp(&bound_s)) {
            Ok(at) => {
                if let Some(bucket) = self.cumulative.get_mut(at) {
                    bucket.1 += count;
                }
            }
            Err(at) => self.cumulative.insert(at, (bound_s, count)),
        }
    }

    fn merge(&mut self, other: &Self) {
        other.cumulative.iter().for_each(|(bound_s, count)| self.add(*bound_s, *count));
        self.sum_s += other.sum_s;
        self.count += other.count;
    }

    fn less(&self, before: &Self) -> Self {
        let was = |bound_s: f64| {
            let found = before.cumulative.binary_search_by(|bucket| bucket.0.total_cmp(&bound_s));
            found.ok().and_then(|at| before.cumulative.get(at)).map_or(0.0, |bucket| bucket.1)
        };
        Self {
            cumulative: self.cumulative.iter().map(|(bound, count)| (*bound, count - was(*bound))).collect(),
            sum_s: self.sum_s - before.sum_s,
            count: self.count - before.count,
        }
    }

    fn stage(&self, name: &str) -> Stage {
        Stage {
            name: name.to_owned(),
            count: self.count.max(0.0) as u64,
            mean_us: 1e6 * self.sum_s / self.count.max(1.0),
            p50_us: 1e6 * self.quantile_s(0.5),
            p99_us: 1e6 * self.quantile_s(0.99),
        }
    }

    fn quantile_s(&self, quantile: f64) -> f64 {
        let wanted = quantile * self.count;
        let (mut low_s, mut below) = (0.0, 0.0);
        for (bound_s, count) in &self.cumulative {
            if *count >= wanted && *count > below {
                if bound_s.is_infinite() {
                    return f64::INFINITY;
                }
                return low_s + (bound_s - low_s) * (wanted - below) / (count - below);
            }
            (low_s, below) = (*bound_s, *count);
        }
        f64::INFINITY
    }
}

/// One line of a page.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    value: f64,
}

impl<'a> Sample<'a> {
    /// `name{label="value",...} number`, perhaps with an exemplar behind it; `None` for comments and other lines.
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (head, rest) = match line.split_once('{') {
            Some((name, rest)) => {
                let (labels, rest) = rest.split_once('}')?;
                ((name, labels), rest)
            }
            None => {
                let (name, rest) = line.split_once(' ')?;
                ((name, ""), rest)
            }
        };
        let labels = head.1.split(',').filter_map(|pair| pair.split_once('='));
        Some(Self {
            name: head.0,
            labels: labels.map(|(name, value)| (name, value.trim_matches('"'))).collect(),
            value: rest.split_whitespace().next()?.parse().ok()?,
        })
    }

    fn label(&self, name: &str) -> Option<&'a str> {
        self.labels.iter().find(|label| label.0 == name).map(|label| label.1)
    }

    /// The stage's name: shards and peers are summed.
    fn key(&self, family: &str) -> String {
        let short = family.strip_prefix("pyralog_").unwrap_or(family);
        let mut key = short.strip_suffix("_seconds").unwrap_or(short).to_owned();
        for (name, value) in self.labels.iter().filter(|label| !["le", "shard", "peer"].contains(&label.0)) {
            key += &format!(" {name}={value}");
        }
        key
    }
}

/// What a node tells in numbers.
///
/// # Errors
/// When it does not answer, or not with metrics.
pub fn page(node: SocketAddr) -> anyhow::Result<String> {
    get(node, "/metrics").with_context(|| format!("metrics of the node at {node}"))
}

/// The sum of all samples of this name on a page, over shards and whatever else tells them apart.
pub fn sum_of(page: &str, name: &str) -> f64 {
    page.lines()
        .filter_map(Sample::parse)
        .filter(|sample| sample.name == name)
        .map(|sample| sample.value)
        .sum()
}

/// The body of one page, by HTTP/1.1.
fn get(addr: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut socket = TcpStream::connect_timeout(&addr, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut reply = Vec::new();
    socket.take(MOST_BYTES).read_to_end(&mut reply)?;
    body_of(&reply)
}

fn body_of(reply: &[u8]) -> anyhow::Result<String> {
    let text = std::str::from_utf8(reply).context("a page that is not text")?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer that is not HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    anyhow::ensure!(status.split(' ').nth(1) == Some("200"), "answered with {status:?}");
    let header = |wanted: &str| {
        head.lines().skip(1).filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
            name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_ascii_lowercase())
        })
    };
    match header("transfer-encoding") {
        Some(encoding) if encoding == "chunked" => unchunked(body),
        _ => Ok(body.to_owned()),
    }
}

fn unchunked(mut body: &str) -> anyhow::Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("a chunk without its size")?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).with_context(|| format!("a chunk of size {size:?}"))?;
        if size == 0 {
            return Ok(whole);
        }
        whole += rest.get(..size).context("a chunk was cut off")?;
        body = rest.get(size + 2..).context("a chunk was cut off")?;
    }
}

/// Does `work` and tells what the nodes' histograms gained from the end of `warmup` on until it was done. The page is
/// asked for while the load runs, once, at the moment at which the measured time begins.
///
/// # Errors
/// Those of the work; a node without metrics only costs the stages, and says so on stderr.
pub fn during<T>(
    nodes: &[SocketAddr],
    warmup: Duration,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Snapshot)> {
    let (done, ended) = mpsc::channel::<()>();
    let (outcome, before) = std::thread::scope(|scope| {
        let before = scope.spawn(move || match ended.recv_timeout(warmup) {
            // The work failed before its measured time began.
            Err(RecvTimeoutError::Disconnected) | Ok(()) => Ok(Snapshot::default()),
            Err(RecvTimeoutError::Timeout) => Snapshot::take(nodes),
        });
        let outcome = work();
        drop(done);
        (outcome, before.join())
    });
    let outcome = outcome?;
    let before = before.map_err(|_| anyhow::anyhow!("the thread that asks for metrics panicked"))?;
    let stages = before.and_then(|before| Ok(Snapshot::take(nodes)?.since(&before)));
    let stages = stages.unwrap_or_else(|error| {
        eprintln!("without the stages of a write: {error:#}");
        Snapshot::default()
    });
    Ok((outcome, stages))
}

/// For a terminal; empty without stages.
pub fn to_table(spent: &Snapshot) -> String {
    let stages = spent.stages();
    if stages.is_empty() {
        return String::new();
    }
    let mut text = "\nwhere the node says a write's time went (p50 and p99 from buckets, so roughly)\n\
                    stage                                       count   mean µs   p50 µs~   p99 µs~\n"
        .to_owned();
    for stage in stages {
        text += &format!(
            "{:38}{:11}{:10.1}{:10.0}{:10.0}\n",
            stage.name, stage.count, stage.mean_us, stage.p50_us, stage.p99_us
        );
    }
    text
}

/// For a program.
pub fn to_json(spent: &Snapshot) -> Value {
    let stage = |stage: Stage| {
        json!({
            "stage": stage.name, "count": stage.count, "mean_us": stage.mean_us,
            "p50_us": stage.p50_us, "p99_us": stage.p99_us,
        })
    };
    spent.stages().into_iter().map(stage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(counts: [u64; 4], sum_s: f64) -> String {
        let [a, b, c, all] = counts;
        format!(
            "# HELP pyralog_write_latency_seconds x.\n\
             pyralog_write_latency_seconds_sum{{shard=\"0\"}} {sum_s}\n\
             pyralog_write_latency_seconds_count{{shard=\"0\"}} {all}\n\
             pyralog_write_latency_seconds_bucket{{le=\"0.0001\",shard=\"0\"}} {a}\n\
             pyralog_write_latency_seconds_bucket{{le=\"0.0002\",shard=\"0\"}} {b}\n\
             pyralog_write_latency_seconds_bucket{{le=\"0.0004\",shard=\"0\"}} {c}\n\
             pyralog_write_latency_seconds_bucket{{le=\"+Inf\",shard=\"0\"}} {all}\n\
             pyralog_writes_total{{shard=\"0\"}} 9\n\
             pyralog_uptime_seconds 12.5\n\
             pyralog_fetch_latency_seconds_count{{shard=\"0\"}} 5\n\
             # EOF\n"
        )
    }

    fn snapshot(pages: &[String]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        pages.iter().for_each(|page| snapshot.add(page));
        snapshot
    }

    #[test]
    fn only_what_happened_in_between_counts() {
        let before = snapshot(&[page([5, 5, 5, 7], 1.0)]);
        let after = snapshot(&[page([5, 105, 205, 207], 1.05)]);
        let stages = after.since(&before).stages();
        assert_eq!(stages.len(), 1, "{stages:?}");
        let stage = &stages[0];
        assert_eq!((stage.name.as_str(), stage.count), ("write_latency", 200));
        assert!((stage.mean_us - 250.0).abs() < 1e-6, "{stage:?}");
        assert!((stage.p50_us - 200.0).abs() < 1e-6, "{stage:?}");
        assert!((stage.p99_us - 396.0).abs() < 1e-6, "{stage:?}");
        assert!(after.since(&after).stages().is_empty());
        let mut twice = after.since(&before);
        twice.merge(&after.since(&before));
        let both = &twice.stages()[0];
        assert_eq!((both.count, both.p99_us), (400, stage.p99_us));
        assert!((both.mean_us - stage.mean_us).abs() < 1e-6);
    }

    #[test]
    fn shards_and_nodes_are_summed_and_other_labels_told_apart() {
        let two = snapshot(&[
            page([0, 1, 1, 1], 0.1),
            page([0, 1, 1, 1], 0.3).replace("shard=\"0\"", "shard=\"7\""),
        ]);
        let stages = two.stages();
        assert_eq!((stages.len(), stages[0].count), (1, 2));
        assert!((stages[0].mean_us - 200_000.0).abs() < 1e-6);
        let staged = "pyralog_write_stage_seconds_bucket{stage=\"queue\",le=\"+Inf\",shard=\"0\"} 4\n\
                      pyralog_write_stage_seconds_count{stage=\"queue\",shard=\"0\"} 4\n\
                      pyralog_write_stage_seconds_count{stage=\"reply\",shard=\"0\"} 4 # {trace=\"x\"} 0.5\n";
        let stages = snapshot(&[staged.to_owned()]).stages();
        let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["write_stage stage=queue", "write_stage stage=reply"]);
        assert!(stages[0].p99_us.is_infinite(), "above every bound");
    }

    #[test]
    fn counters_are_summed_by_name() {
        let page = "pyralog_cache_hits_total{shard=\"0\"} 3\npyralog_cache_hits_total{shard=\"1\"} 4\n\
                    pyralog_cache_hits_total_other 100\n";
        assert_eq!(sum_of(page, "pyralog_cache_hits_total"), 7.0);
        assert_eq!(sum_of(page, "pyralog_none"), 0.0);
    }

    #[test]
    fn pages_come_whole_and_in_chunks() {
        let whole = body_of(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc").unwrap();
        let chunks =
            body_of(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n");
        assert_eq!((whole.as_str(), chunks.unwrap().as_str()), ("abc", "abc"));
        let missing = body_of(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err().to_string();
        assert!(missing.contains("404"), "{missing}");
        body_of(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nab").unwrap_err();
        body_of(b"\xb7\x01").unwrap_err();
    }

    #[test]
    fn a_node_without_metrics_costs_the_stages_and_not_the_run() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (done, stages) = during(&[nobody], Duration::ZERO, || Ok(5)).unwrap();
        assert_eq!((done, stages.stages().len()), (5, 0));
        let failed =
            during(&[nobody], Duration::from_secs(3600), || anyhow::bail!("no load")).map(|((), _)| ());
        assert_eq!(failed.unwrap_err().to_string(), "no load");
    }
}
