//! One setting while it is read or shown: which type it has, how it is written, what its bounds are.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::tree::Node;
use super::units;
use super::{ClusterNode, FsyncPolicy, Hugepages};

/// Shortest and longest interval of `fsync_policy: interval(…)`, microseconds.
const FSYNC_INTERVAL_US: (u64, u64) = (1_000, 10_000_000);

/// Bounds of a size.
#[derive(Clone, Copy, Debug)]
pub(super) struct SizeBounds {
    pub(super) min: u64,
    pub(super) max: u64,
    /// The size is a multiple of this.
    pub(super) step: u64,
}

/// The unit that a duration is kept in and that a plain number has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Us,
    Ms,
}

impl Unit {
    fn us(self) -> u64 {
        match self {
            Self::Us => 1,
            Self::Ms => 1_000,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Us => "microseconds",
            Self::Ms => "milliseconds",
        }
    }
}

/// Longest name, bytes.
use crate::limits::MAX_CLUSTER_NAME_BYTES;

/// A setting of a [`super::Config`] and its bounds.
pub(super) enum Field<'a> {
    Number(&'a mut u32, u32, u32),
    /// A number; the word stands for "not given".
    OptNumber(&'a mut Option<u32>, u32, u32, &'static str),
    Size(&'a mut u64, SizeBounds),
    OptSize(&'a mut Option<u64>, SizeBounds, &'static str),
    Duration(&'a mut u64, Unit, u64, u64),
    OptDuration(&'a mut Option<u64>, Unit, u64, u64, &'static str),
    Bool(&'a mut bool),
    /// A name of letters, digits and `.`, `_`, `-`.
    Name(&'a mut String),
    /// Such a name; the text says what holds without one.
    OptName(&'a mut Option<String>, &'static str),
    Path(&'a mut PathBuf),
    /// A path; the text says what holds without one.
    OptPath(&'a mut Option<PathBuf>, &'static str),
    Socket(&'a mut SocketAddr),
    OptSocket(&'a mut Option<SocketAddr>, &'static str),
    OptHostPort(&'a mut Option<String>, &'static str),
    Nodes(&'a mut Vec<ClusterNode>),
    Cpus(&'a mut Option<Vec<usize>>),
    Fsync(&'a mut FsyncPolicy),
    Hugepages(&'a mut Hugepages),
}

impl Field<'_> {
    /// Takes the value as written, or says what is wrong and what to write instead.
    pub(super) fn set(&mut self, node: &Node) -> Result<(), String> {
        let wrong = |wanted: String| format!("{} is not valid here; write {wanted}", node.describe());
        let usage = wrong(self.usage());
        match self {
            Self::Number(out, min, max) => **out = number(node, *min, *max).ok_or(usage)?,
            Self::OptNumber(out, min, max, word) => {
                **out = if is_word(node, word) { None } else { Some(number(node, *min, *max).ok_or(usage)?) };
            }
            Self::Size(out, bounds) => **out = size(node, *bounds).ok_or(usage)?,
            Self::OptSize(out, bounds, word) => {
                **out = if is_word(node, word) { None } else { Some(size(node, *bounds).ok_or(usage)?) };
            }
            Self::Duration(out, unit, min, max) => **out = duration(node, *unit, *min, *max).ok_or(usage)?,
            Self::OptDuration(out, unit, min, max, word) => {
                let value = if is_word(node, word) {
                    None
                } else {
                    Some(duration(node, *unit, *min, *max).ok_or(usage)?)
                };
                **out = value;
            }
            Self::Bool(out) => **out = boolean(node).ok_or(usage)?,
            Self::Name(out) => **out = text(node).and_then(name).ok_or(usage)?,
            Self::OptName(out, _) => **out = Some(text(node).and_then(name).ok_or(usage)?),
            Self::Path(out) => **out = PathBuf::from(path(node).ok_or(usage)?),
            Self::OptPath(out, _) => **out = Some(PathBuf::from(path(node).ok_or(usage)?)),
            Self::Socket(out) => **out = text(node).and_then(socket).ok_or(usage)?,
            Self::OptSocket(out, _) => **out = Some(text(node).and_then(socket).ok_or(usage)?),
            Self::OptHostPort(out, _) => **out = Some(text(node).and_then(host_port).ok_or(usage)?),
            Self::Nodes(out) => **out = nodes(node).ok_or(usage)?,
            Self::Cpus(out) => **out = cpus(node).ok_or(usage)?,
            Self::Fsync(out) => **out = text(node).and_then(fsync).ok_or(usage)?,
            // YAML reads the word `off` as false.
            Self::Hugepages(out) if matches!(node, Node::Bool(false)) => **out = Hugepages::Off,
            Self::Hugepages(out) => **out = text(node).and_then(hugepages).ok_or(usage)?,
        }
        Ok(())
    }

    /// The value as it would be written in a file.
    pub(super) fn render(&self) -> String {
        match self {
            Self::Number(v, ..) => v.to_string(),
            Self::OptNumber(v, _, _, word) => v.map_or((*word).to_owned(), |v| v.to_string()),
            Self::Size(v, _) => units::format_size(**v),
            Self::OptSize(v, _, word) => v.map_or((*word).to_owned(), units::format_size),
            Self::Duration(v, ..) => v.to_string(),
            Self::OptDuration(v, .., word) => v.map_or((*word).to_owned(), |v| v.to_string()),
            Self::Bool(v) => v.to_string(),
            Self::Name(v) => (*v).clone(),
            Self::Path(v) => v.display().to_string(),
            Self::OptPath(v, unset) => v.as_ref().map_or(format!("({unset})"), |v| v.display().to_string()),
            Self::Socket(v) => v.to_string(),
            Self::OptSocket(v, unset) => v.map_or(format!("({unset})"), |v| v.to_string()),
            Self::OptName(v, unset) | Self::OptHostPort(v, unset) => {
                v.as_ref().map_or(format!("({unset})"), Clone::clone)
            }
            Self::Nodes(v) => format!("[{}]", node_texts(v).join(", ")),
            Self::Cpus(v) => v.as_ref().map_or("auto".to_owned(), |v| units::format_cpus(v)),
            Self::Fsync(v) => match **v {
                FsyncPolicy::EveryWrite => "every_write".to_owned(),
                FsyncPolicy::Interval(us) => format!("interval({})", units::format_duration_us(us)),
                FsyncPolicy::Never => "never".to_owned(),
            },
            Self::Hugepages(v) => match v {
                Hugepages::Off => "off",
                Hugepages::Transparent => "transparent",
                Hugepages::Explicit => "explicit",
            }
            .to_owned(),
        }
    }

    /// The value for programs: sizes in bytes, durations in the key's unit, `null` when it is not set.
    pub(super) fn json(&self) -> Value {
        match self {
            Self::Number(v, ..) => json!(v),
            Self::OptNumber(v, ..) => json!(v),
            Self::Size(v, _) | Self::Duration(v, ..) => json!(v),
            Self::OptSize(v, ..) | Self::OptDuration(v, ..) => json!(v),
            Self::Bool(v) => json!(v),
            Self::Name(v) => json!(v),
            Self::OptPath(v, _) => json!(v.as_ref().map(|v| v.display().to_string())),
            Self::OptSocket(v, _) => json!(v),
            Self::OptName(v, _) | Self::OptHostPort(v, _) => json!(v),
            Self::Nodes(v) => json!(node_texts(v)),
            Self::Cpus(v) => json!(v),
            Self::Path(_) | Self::Socket(_) | Self::Fsync(_) | Self::Hugepages(_) => json!(self.render()),
        }
    }

    /// Its type, in a word or two.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Number(..) | Self::OptNumber(..) => "number",
            Self::Size(..) | Self::OptSize(..) => "size",
            Self::Duration(..) | Self::OptDuration(..) => "duration",
            Self::Bool(_) => "true or false",
            Self::Name(_) | Self::OptName(..) => "name",
            Self::Path(_) | Self::OptPath(..) => "path",
            Self::Socket(_) | Self::OptSocket(..) => "IP:PORT",
            Self::OptHostPort(..) => "HOST:PORT",
            Self::Nodes(_) => "list of ID@HOST:PORT",
            Self::Cpus(_) => "CPU list",
            Self::Fsync(_) | Self::Hugepages(_) => "word",
        }
    }

    /// What may be written.
    pub(super) fn usage(&self) -> String {
        match self {
            Self::Number(_, min, max) => format!("a number from {min} to {max}"),
            Self::OptNumber(_, min, max, word) => format!("a number from {min} to {max}, or {word}"),
            Self::Size(_, bounds) => size_usage(*bounds),
            Self::OptSize(_, bounds, word) => format!("{}, or {word}", size_usage(*bounds)),
            Self::Duration(_, unit, min, max) => duration_usage(*unit, *min, *max),
            Self::OptDuration(_, unit, min, max, word) => {
                format!("{}, or {word}", duration_usage(*unit, *min, *max))
            }
            Self::Bool(_) => "true or false".to_owned(),
            Self::Name(_) | Self::OptName(..) => {
                format!("1 to {MAX_CLUSTER_NAME_BYTES} letters, digits, '.', '_' or '-'")
            }
            Self::Path(_) | Self::OptPath(..) => "a path".to_owned(),
            Self::Socket(_) | Self::OptSocket(..) => {
                "an IP address and a port, like 0.0.0.0:9092, [::1]:9092 or localhost:9092".to_owned()
            }
            Self::OptHostPort(..) => {
                "a host and a port from 1 to 65535, like log1.example.org:9092".to_owned()
            }
            Self::Nodes(_) => {
                "a list of ID@HOST:PORT, or of HOST:PORT for the nodes 1, 2, 3 … (or one text with commas)"
                    .to_owned()
            }
            Self::Cpus(_) => "auto, or CPU numbers like 0-3,6".to_owned(),
            Self::Fsync(_) => {
                let (min, max) = FSYNC_INTERVAL_US;
                let (min, max) = (units::format_duration_us(min), units::format_duration_us(max));
                format!("every_write, interval(10ms) (from {min} to {max}) or never")
            }
            Self::Hugepages(_) => "off, transparent or explicit".to_owned(),
        }
    }
}

fn size_usage(SizeBounds { min, max, step }: SizeBounds) -> String {
    let steps =
        if step > 1 { format!(" in multiples of {}", units::format_size(step)) } else { String::new() };
    format!("a size from {} to {}{steps}", units::format_size(min), units::format_size(max))
}

fn duration_usage(unit: Unit, min: u64, max: u64) -> String {
    let longest = units::format_duration_us(max.saturating_mul(unit.us()));
    let longest = if max == 0 { String::new() } else { format!(" ({longest})") };
    format!("{} from {min} to {max}{longest}, or a time with a unit like 5s", unit.name())
}

fn text(node: &Node) -> Option<&str> {
    match node {
        Node::Text(text) => Some(text.trim()),
        _ => None,
    }
}

fn is_word(node: &Node, word: &str) -> bool {
    text(node) == Some(word)
}

fn boolean(node: &Node) -> Option<bool> {
    match node {
        Node::Bool(b) => Some(*b),
        _ => text(node)?.parse().ok(),
    }
}

fn number(node: &Node, min: u32, max: u32) -> Option<u32> {
    let value = match node {
        Node::Number(n) => *n,
        _ => text(node)?.replace('_', "").parse().ok()?,
    };
    u32::try_from(value).ok().filter(|v| (min..=max).contains(v))
}

fn size(node: &Node, SizeBounds { min, max, step }: SizeBounds) -> Option<u64> {
    let value = match node {
        Node::Number(n) => *n,
        _ => units::parse_size(text(node)?)?,
    };
    ((min..=max).contains(&value) && value.is_multiple_of(step)).then_some(value)
}

fn duration(node: &Node, unit: Unit, min: u64, max: u64) -> Option<u64> {
    let value = match node {
        Node::Number(n) => *n,
        _ => {
            let us = units::parse_duration_us(text(node)?, Some(unit.us()))?;
            // `1500us` for a key in milliseconds would be rounded without a word.
            us.is_multiple_of(unit.us()).then_some(us / unit.us())?
        }
    };
    (min..=max).contains(&value).then_some(value)
}

fn path(node: &Node) -> Option<&str> {
    match node {
        Node::Text(text) if !text.is_empty() && !text.contains('\0') => Some(text),
        _ => None,
    }
}

fn socket(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().ok()?))),
        None => text.parse().ok(),
    }
}

fn host_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let good_host = if bracketed { text.parse::<SocketAddr>().is_ok() } else { host.chars().all(plain) };
    (port != 0 && !host.is_empty() && host.len() <= 253 && good_host).then(|| text.to_owned())
}

fn nodes(node: &Node) -> Option<Vec<ClusterNode>> {
    match node {
        Node::List(list) => list.iter().map(|n| text(n).and_then(cluster_node)).collect(),
        Node::Text(text) if text.trim().is_empty() => Some(Vec::new()),
        Node::Text(text) => text.split(',').map(|t| cluster_node(t.trim())).collect(),
        _ => None,
    }
}

fn name(text: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    ((1..=MAX_CLUSTER_NAME_BYTES).contains(&text.len()) && text.bytes().all(allowed)).then(|| text.to_owned())
}

fn cluster_node(text: &str) -> Option<ClusterNode> {
    let (id, address) = match text.split_once('@') {
        Some((id, address)) => (Some(id.parse().ok().filter(|id| *id > 0)?), address),
        None => (None, text),
    };
    Some(ClusterNode { id, address: host_port(address)? })
}

pub(super) fn node_texts(nodes: &[ClusterNode]) -> Vec<String> {
    nodes.iter().map(ClusterNode::to_string).collect()
}

/// `Some(None)` is `auto`.
#[allow(clippy::option_option)]
fn cpus(node: &Node) -> Option<Option<Vec<usize>>> {
    match node {
        Node::Number(n) => units::parse_cpus(&n.to_string()).map(Some),
        Node::List(list) => {
            let parts: Option<Vec<String>> = list
                .iter()
                .map(|n| match n {
                    Node::Number(n) => Some(n.to_string()),
                    other => text(other).map(str::to_owned),
                })
                .collect();
            units::parse_cpus(&parts?.join(",")).map(Some)
        }
        _ if is_word(node, "auto") => Some(None),
        _ => units::parse_cpus(text(node)?).map(Some),
    }
}

fn fsync(text: &str) -> Option<FsyncPolicy> {
    match text {
        "every_write" => Some(FsyncPolicy::EveryWrite),
        "never" => Some(FsyncPolicy::Never),
        _ => {
            let time = text.strip_prefix("interval(")?.strip_suffix(')')?;
            let us = units::parse_duration_us(time, None)?;
            let (min, max) = FSYNC_INTERVAL_US;
            (min..=max).contains(&us).then_some(FsyncPolicy::Interval(us))
        }
    }
}

fn hugepages(text: &str) -> Option<Hugepages> {
    match text {
        "off" => Some(Hugepages::Off),
        "transparent" => Some(Hugepages::Transparent),
        "explicit" => Some(Hugepages::Explicit),
        _ => None,
    }
}
