//! What the documentation says of the tree, held against the tree.

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
    // And every T that a cell refers to is in the second table.
    for number in 1..=99 {
        let (used, defined) =
            (page.matches(&format!("T{number}")).count(), page.contains(&format!("| T{number} |")));
        assert!(used == 0 || defined, "T{number} is used and not defined");
    }
}

#[test]
fn every_page_that_a_page_links_to_exists() {
    let pages = [
        "README.md",
        "docs/architecture.md",
        "docs/durability.md",
        "docs/decisions/README.md",
        "docs/operations/monitoring.md",
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
