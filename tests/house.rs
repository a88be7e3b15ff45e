//! The house: who may import whom, and who alone may do what.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FLOOR: [&str; 4] = ["clock", "event", "signal", "sys"];

/// The rooms that a room may import, besides itself and the floor. As src/lib.rs has it.
const MAY: [(&str, &[&str]); 9] = [
    ("model", &[]),
    ("exit", &[]),
    ("output", &[]),
    ("store", &["model"]),
    ("holder", &["store", "model"]),
    ("child", &[]),
    ("cli", &["exit"]),
    ("config", &["cli", "child", "exit", "holder", "model", "output", "store"]),
    ("command", &["cli", "config", "child", "exit", "holder", "model", "output", "store"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src can be listed") {
        let path = entry.expect("src can be listed").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Each file under src with its room and its text.
fn house() -> Vec<(String, PathBuf, String)> {
    let src = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    let room = |path: &Path| {
        let inside = path.strip_prefix(&src).expect("it is in src");
        let first = inside.iter().next().expect("it has a name").to_string_lossy();
        first.trim_end_matches(".rs").to_owned()
    };
    found.into_iter().map(|path| (room(&path), path.clone(), fs::read_to_string(path).expect("it is text"))).collect()
}

/// The rooms that a text names as `crate::room`.
fn imports(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let after = code.split("crate::").skip(1);
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    after.map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_room_imports_only_what_the_map_allows() {
    for (room, path, text) in house() {
        if ["main", "lib"].contains(&&*room) {
            continue;
        }
        let floor = FLOOR.contains(&&*room);
        let row = MAY.iter().find(|(name, _)| *name == room);
        assert!(floor || row.is_some(), "'{room}' is not on the map");
        for import in imports(&text) {
            let pure = room == "model";
            let allowed = import == room
                || !pure && FLOOR.contains(&&*import)
                || row.is_some_and(|(_, may)| may.contains(&&*import));
            assert!(allowed, "{} imports {import}", path.display());
        }
    }
}

#[test]
fn the_rooms_of_the_store_stand_beside_each_other() {
    for (room, path, text) in house() {
        let backend = ["etcd", "file", "nats", "postgres", "redis", "ring"]
            .iter()
            .find(|name| path.to_string_lossy().contains(&format!("/store/{name}/")));
        if let Some(backend) = backend.filter(|_| room == "store") {
            let others = ["EtcdRegister", "FileRegister", "NatsRegister", "PostgresRegister", "RedisStore"];
            for other in ["Ledger", "ledger", "registry"].into_iter().chain(others) {
                let own = other.to_lowercase().starts_with(backend);
                assert!(own || !text.contains(other), "{} knows {other}", path.display());
            }
        }
    }
}

#[test]
fn a_file_can_be_read_in_one_sitting() {
    for (_, path, text) in house() {
        let lines = text.split("#[cfg(test)]").next().map_or(0, |text| text.lines().count());
        assert!(lines <= 450, "{} has {lines} lines", path.display());
        assert!(text.starts_with("//!"), "{} does not open with its purpose", path.display());
    }
}
