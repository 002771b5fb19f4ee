//! Rules of the repository that no compiler checks, as tests: `cargo test` runs them.

use std::path::{Path, PathBuf};

use crate::process::root;

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    let mut found = Vec::new();
    for directory in ["crates", "examples", "xtask", "benchmark"] {
        walk(&root().join(directory), &mut found);
    }
    assert!(found.len() > 20, "the walk has missed the sources");
    found
}

#[test]
fn every_file_opens_with_what_it_is() {
    for (path, text) in sources() {
        assert!(text.starts_with("//! "), "{}: must open with //!", path.display());
    }
}

#[test]
fn only_the_kernel_layer_may_be_unsafe_and_only_it_knows_nix() {
    for (path, text) in sources() {
        if path.starts_with("crates/epoll-sys") {
            continue;
        }
        if path.ends_with("src/lib.rs") || path.ends_with("src/main.rs") {
            assert!(text.contains("#![forbid(unsafe_code)]"), "{}: must forbid unsafe code", path.display());
        }
        if path.components().any(|part| part.as_os_str() == "src") {
            assert!(!text.contains(concat!("use ", "nix")), "{}: nix belongs to epoll-sys", path.display());
        }
    }
}

/// A crate imports only crates to its left.
#[test]
fn the_layers_hold() {
    let layers = ["epoll-sys", "epoll-reactor", "epoll-protocols", "epoll-server"];
    for (height, layer) in layers.iter().enumerate() {
        let manifest = std::fs::read_to_string(root().join("crates").join(layer).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        for (above, name) in layers.iter().enumerate() {
            let depends = dependencies.lines().any(|line| line.starts_with(&format!("{name}.")));
            // The lowest layer is reached through the reactor, which re-exports what its users need of it.
            let allowed = above < height && (above > 0 || height == 1);
            assert!(!depends || allowed, "{layer} depends on {name}");
        }
    }
}

/// Product code; a table or a test may be as long as it is.
#[test]
fn files_hold_one_idea() {
    for (path, text) in sources() {
        let code = text.split("#[cfg(test)]").next().unwrap().lines().count();
        let in_product =
            path.starts_with("crates") && path.components().any(|part| part.as_os_str() == "src");
        assert!(!in_product || code <= 450, "{}: {code} lines before its tests", path.display());
    }
}

/// What rustdoc shows of `Limits` has no values, so each field's documentation says its own.
#[test]
fn limits_say_their_defaults() {
    let text = std::fs::read_to_string(root().join("crates/epoll-reactor/src/limits.rs")).unwrap();
    let (fields, rest) = text.split_once("pub struct Limits {").unwrap().1.split_once("\n}\n").unwrap();
    let defaults = rest.split_once("impl Default for Limits").unwrap().1.split_once("\n}\n").unwrap().0;
    let mut count = 0;
    for line in defaults.lines() {
        let Some((name, value)) = line.trim().strip_suffix(',').and_then(|line| line.split_once(": ")) else {
            continue;
        };
        let documentation = fields.split(&format!("    pub {name}:")).next().unwrap();
        let last = documentation.lines().next_back().unwrap().trim();
        assert_eq!(last, format!("/// Default: {}.", in_words(value)), "{name}");
        count += 1;
    }
    assert!(count > 20, "only {count} defaults found");
}

/// The value of an expression, with its unit.
fn in_words(value: &str) -> String {
    let inside = |function: &str| value.strip_prefix(function)?.strip_suffix(')');
    if let Some(seconds) = inside("Duration::from_secs(") {
        return format!("{seconds} s");
    }
    if let Some(milliseconds) = inside("Duration::from_millis(") {
        return format!("{milliseconds} ms");
    }
    if let Some(variant) = value.strip_prefix("PanicPolicy::") {
        return format!("[`{variant}`](PanicPolicy::{variant})");
    }
    match value.strip_suffix("1024 * 1024").map(str::trim_end) {
        Some("") => return "1 MiB".to_owned(),
        Some(times) => return format!("{} MiB", times.trim_end_matches(" *")),
        None => (),
    }
    match value.strip_suffix(" * 1024") {
        Some(times) => format!("{times} KiB"),
        None if matches!(value, "None" | "usize::MAX" | "&[]") => format!("`{value}`"),
        None => value.replace('_', ","),
    }
}
