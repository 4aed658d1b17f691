//! A configuration file as a tree, before its keys are looked at. Keeps every key, so that a repeated one is seen.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A value as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(u64),
    /// A number that no key accepts: negative or with a fraction.
    OtherNumber(String),
    Text(String),
    List(Vec<Node>),
    Section(Vec<(String, Node)>),
}

impl Node {
    /// What it is, for a message.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(b) => b.to_string(),
            Self::Number(n) => n.to_string(),
            Self::OtherNumber(n) => n.clone(),
            Self::Text(t) => format!("{t:?}"),
            Self::List(_) => "a list".to_owned(),
            Self::Section(_) => "a section".to_owned(),
        }
    }
}

/// Reads a file's text: JSON when its name ends in `.json`, YAML otherwise. An empty file is an empty section.
pub(super) fn parse(name: &str, text: &str) -> Result<Vec<(String, Node)>, String> {
    let is_json = name.len() >= 5 && name.to_ascii_lowercase().ends_with(".json");
    let node = if is_json {
        serde_json::from_str(text).map_err(|e| format!("this is not JSON: {e}"))?
    } else if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
        Node::Null
    } else {
        serde_saphyr::from_str(text).map_err(|e| format!("this is not YAML: {e}"))?
    };
    match node {
        Node::Section(entries) => Ok(entries),
        Node::Null => Ok(Vec::new()),
        other => {
            Err(format!("the file has to hold sections like node: and storage:, not {}", other.describe()))
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a section, a list, text, a number, true or false")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(u64::try_from(value).map_or_else(|_| Node::OtherNumber(value.to_string()), Node::Number))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::OtherNumber(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Section(entries))
    }
}
