//! Laying the sources over each other and keeping track of where each value came from.

use std::fmt;

use serde_json::{Value, json};

use super::keys::{KEYS, Key, SHORT_ENV};
use super::presets::{PRESETS, Preset};
use super::tree::{self, Node};
use super::{Config, ConfigError, ConfigErrors, validate};

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: the default.
    Default,
    /// The preset of that name.
    Preset(String),
    /// The file of that name.
    File(String),
    /// The environment variable of that name.
    Env(String),
    /// The command-line option of that name.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::File(name) => write!(f, "file {name}"),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "option {name}"),
        }
    }
}

/// A value given on the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The key it sets, e.g. `node.data_dir`.
    pub key: &'static str,
    /// The value.
    pub value: String,
    /// The option's name, e.g. `--data-dir`.
    pub option: &'static str,
}

/// Everything that can set a value, lowest first.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Name of a preset.
    pub preset: Option<String>,
    /// Name and text of the configuration file. A name that ends in `.json` is read as JSON, any other as YAML.
    pub file: Option<(String, String)>,
    /// Environment variables; those that have nothing to do with Pyralog are skipped.
    pub env: Vec<(String, String)>,
    /// Options of the command line.
    pub flags: Vec<Flag>,
}

/// A valid configuration and the origin of each value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The values.
    pub config: Config,
    /// Where they came from, in the order of [`KEYS`].
    origins: Vec<Origin>,
}

/// Variables of the programs' own, which set no key.
const OTHER_ENV: [&str; 4] = ["PYRALOG_CONFIG", "PYRALOG_PRESET", "PYRALOG_CLUSTER", "PYRALOG_LOG"];

/// Lays all sources over each other and checks the result.
///
/// # Errors
/// Everything that is wrong in any of them.
pub fn load(layers: &Layers) -> Result<Effective, ConfigErrors> {
    let mut loader = Loader {
        effective: Effective { config: Config::default(), origins: vec![Origin::Default; KEYS.len()] },
        errors: Vec::new(),
    };
    if let Some(name) = &layers.preset {
        loader.preset(name);
    }
    if let Some((name, text)) = &layers.file {
        loader.file(name, text);
    }
    loader.environment(&layers.env);
    for flag in &layers.flags {
        let origin = Origin::Flag(flag.option.to_owned());
        match Key::find(flag.key) {
            Some(key) => loader.set(key, &Node::Text(flag.value.clone()), &origin),
            None => loader.error(&origin, flag.key, "this option sets a key that does not exist".to_owned()),
        }
    }
    let Loader { effective, mut errors } = loader;
    errors.extend(validate::check(&effective));
    if errors.is_empty() { Ok(effective) } else { Err(ConfigErrors(errors)) }
}

struct Loader {
    effective: Effective,
    errors: Vec<ConfigError>,
}

impl Loader {
    fn error(&mut self, origin: &Origin, key: &str, message: String) {
        self.errors.push(ConfigError { origin: origin.clone(), key: key.to_owned(), message });
    }

    fn set(&mut self, key: &'static Key, value: &Node, origin: &Origin) {
        match (key.field)(&mut self.effective.config).set(value) {
            Ok(()) => {
                let place = KEYS.iter().position(|k| k.path == key.path);
                if let Some(slot) = place.and_then(|i| self.effective.origins.get_mut(i)) {
                    *slot = origin.clone();
                }
            }
            Err(message) => self.error(origin, key.path, message),
        }
    }

    fn preset(&mut self, name: &str) {
        let origin = Origin::Preset(name.to_owned());
        let Some(preset) = Preset::find(name) else {
            let names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
            return self.error(
                &origin,
                "",
                format!("there is no such preset; there are {}", names.join(", ")),
            );
        };
        for (path, value) in preset.values {
            match Key::find(path) {
                Some(key) => self.set(key, &Node::Text((*value).to_owned()), &origin),
                None => self.error(&origin, path, "this preset sets a key that does not exist".to_owned()),
            }
        }
    }

    fn file(&mut self, name: &str, text: &str) {
        let origin = Origin::File(name.to_owned());
        match tree::parse(name, text) {
            Ok(entries) => self.section("", &entries, &origin, &mut Vec::new()),
            Err(message) => self.error(&origin, "", message),
        }
    }

    /// Takes one section of the file. `seen` holds every path so far.
    fn section(&mut self, prefix: &str, entries: &[(String, Node)], origin: &Origin, seen: &mut Vec<String>) {
        for (name, node) in entries {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if seen.contains(&path) {
                self.error(origin, &path, "this key is there twice; keep one of them".to_owned());
                continue;
            }
            seen.push(path.clone());
            match (Key::find(&path), node) {
                (Some(key), node) => self.set(key, node, origin),
                (None, Node::Section(inner)) if !inner.is_empty() => self.section(&path, inner, origin, seen),
                // A section whose keys are all commented out.
                (None, Node::Null | Node::Section(_)) if is_section(&path) => {}
                (None, _) if is_section(&path) => {
                    let keys = keys_of(&path).join(", ");
                    self.error(origin, &path, format!("this is a section; give values to its keys: {keys}"));
                }
                (None, _) => {
                    let nearest = nearest(&path, KEYS.iter().map(|k| k.path.to_owned()));
                    self.error(origin, &path, format!("there is no such key; did you mean {nearest}?"));
                }
            }
        }
    }

    fn environment(&mut self, env: &[(String, String)]) {
        // In a fixed order, whatever the environment's is.
        let mut env: Vec<_> = env.iter().filter(|(name, _)| name.starts_with("PYRALOG_")).collect();
        env.sort();
        let mut given: Vec<(&'static str, &str, &str)> = Vec::new();
        for (name, value) in env {
            let origin = Origin::Env(name.clone());
            let Some(key) = self.env_key(name, &origin) else { continue };
            let other = given.iter().find(|(path, _, other)| *path == key.path && *other != value);
            if let Some((_, other, _)) = other {
                let message =
                    format!("{other} sets the same key to something else; keep one of the two variables");
                self.error(&origin, key.path, message);
                continue;
            }
            given.push((key.path, name, value));
            self.set(key, &Node::Text(value.clone()), &origin);
        }
    }

    /// The key that a variable sets. `None` for a variable that is not ours, or a misspelt one (told as an error).
    fn env_key(&mut self, name: &str, origin: &Origin) -> Option<&'static Key> {
        if name.starts_with("PYRALOG__") {
            let key = KEYS.iter().find(|k| k.env_name() == name);
            if key.is_none() {
                let nearest = nearest(name, KEYS.iter().map(Key::env_name));
                self.error(origin, "", format!("there is no such key; did you mean {nearest}?"));
            }
            return key;
        }
        if let Some((_, path)) = SHORT_ENV.iter().find(|(short, _)| *short == name) {
            return Key::find(path);
        }
        // Other programs may have variables of that prefix; one typing error away from ours is not one of theirs.
        let near = SHORT_ENV.iter().find(|(short, _)| strsim::damerau_levenshtein(short, name) <= 2);
        if let Some((short, _)) = near
            && !OTHER_ENV.contains(&name)
        {
            self.error(origin, "", format!("there is no such variable; did you mean {short}?"));
        }
        None
    }
}

fn is_section(path: &str) -> bool {
    !keys_of(path).is_empty()
}

/// The keys inside a section.
fn keys_of(section: &str) -> Vec<&'static str> {
    let inside = |k: &&Key| k.path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
    KEYS.iter().filter(inside).map(|k| k.path).collect()
}

/// The candidate most like `wanted`. A right name in the wrong section counts more than a similar one elsewhere.
fn nearest(wanted: &str, candidates: impl Iterator<Item = String>) -> String {
    let leaf =
        |path: &str| path.rsplit(['.']).next().and_then(|l| l.rsplit("__").next()).unwrap_or("").to_owned();
    let wanted_leaf = leaf(wanted);
    let score = |candidate: &str| {
        strsim::normalized_damerau_levenshtein(wanted, candidate)
            + strsim::normalized_damerau_levenshtein(&wanted_leaf, &leaf(candidate))
    };
    let best = candidates.max_by(|a, b| score(a).total_cmp(&score(b)));
    best.unwrap_or_default()
}

impl Effective {
    /// Each key, its value as it would be written, and where that came from.
    pub fn entries(&self) -> impl Iterator<Item = (&'static Key, String, &Origin)> {
        KEYS.iter().zip(&self.origins).map(|(key, origin)| (key, key.render(&self.config), origin))
    }

    /// Where the value of a key came from.
    pub fn origin(&self, path: &str) -> &Origin {
        let place = KEYS.iter().position(|k| k.path == path);
        place.and_then(|i| self.origins.get(i)).unwrap_or(&Origin::Default)
    }

    /// Key, value and origin of every key, one a line, in columns.
    pub fn to_text(&self) -> String {
        let rows: Vec<_> = self.entries().map(|(key, value, origin)| (key.path, value, origin)).collect();
        let width = |of: fn(&(&str, String, &Origin)) -> usize| rows.iter().map(of).max().unwrap_or(0);
        let (keys, values) = (width(|r| r.0.chars().count()), width(|r| r.1.chars().count()));
        rows.iter().map(|(key, value, origin)| format!("{key:keys$}  {value:values$}  {origin}\n")).collect()
    }

    /// A list of `{key, value, origin}`: sizes in bytes, durations in the key's unit, `null` for what is not set.
    pub fn to_json(&self) -> Value {
        let entry = |(key, origin): (&Key, &Origin)| json!({ "key": key.path, "value": key.json(&self.config), "origin": origin.to_string() });
        KEYS.iter().zip(&self.origins).map(entry).collect()
    }
}
