//! Imports point down: a part of the crate uses only what lies below it, and no two files of the proxy use each other.
//!
//! Nothing else holds this: the compiler allows circles among modules. What is read are the `use` lines before a file's tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each part may use.
const PARTS: &[(&str, &[&str])] = &[
    ("main", &["app", "cli", "demo", "telemetry"]),
    (
        "app",
        &[
            "clock",
            "config",
            "dial",
            "drain",
            "health",
            "memory",
            "proxy",
            "routing",
            "secret",
            "store",
            "sync",
            "telemetry",
            "tls",
        ],
    ),
    ("demo", &["app", "cli", "config", "telemetry"]),
    ("cli", &["config", "health", "proxy", "secret", "store", "sync", "telemetry", "tls"]),
    ("config", &["health", "proxy", "secret", "store", "sync", "telemetry", "tls"]),
    (
        "proxy",
        &["clock", "dial", "drain", "files", "memory", "message", "routing", "secret", "telemetry", "tls", "transport"],
    ),
    ("sync", &["clock", "drain", "files", "routing", "store", "telemetry", "tls"]),
    ("health", &["clock", "dial", "drain", "routing", "store", "telemetry"]),
    ("store", &["clock", "files", "roots", "routing", "secret"]),
    ("dial", &["roots", "routing", "telemetry", "transport"]),
    ("telemetry", &["clock"]),
    ("tls", &["files", "roots", "secret"]),
    ("routing", &["clock"]),
    ("memory", &[]),
    ("message", &[]),
    ("transport", &[]),
    ("roots", &[]),
    ("secret", &[]),
    ("drain", &[]),
    ("clock", &[]),
    ("files", &[]),
];

#[test]
fn each_part_uses_only_what_lies_below_it() {
    let allowed: BTreeMap<&str, &[&str]> = PARTS.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in sources() {
        let part = file.module.first().map_or("main", String::as_str);
        let Some(below) = allowed.get(part) else {
            assert_eq!(part, "lib", "{part} is no part that this test knows");
            continue;
        };
        for import in &file.imports {
            let used = import.first().map_or("", String::as_str);
            if used != part && !below.contains(&used) {
                wrong.push(format!("{} uses {}", file.path.display(), import.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_two_files_of_the_proxy_use_each_other() {
    let files: Vec<Source> =
        sources().into_iter().filter(|file| file.module.first().is_some_and(|m| m == "proxy")).collect();
    let modules: BTreeSet<&[String]> = files.iter().map(|file| &file.module[..]).collect();
    let edges: BTreeMap<&[String], BTreeSet<&[String]>> = files
        .iter()
        .map(|file| {
            let used = file.imports.iter().filter_map(|import| module_of(&modules, import));
            (&file.module[..], used.filter(|used| *used != file.module).collect())
        })
        .collect();
    for &from in edges.keys() {
        if let Some(circle) = circle(&edges, from) {
            panic!("{}", circle.iter().map(|module| module.join("::")).collect::<Vec<_>>().join(" -> "));
        }
    }
}

/// The module that a path leads into: the longest one that is a file.
fn module_of<'a>(modules: &BTreeSet<&'a [String]>, path: &[String]) -> Option<&'a [String]> {
    (1..=path.len()).rev().find_map(|length| modules.iter().find(|module| ***module == path[..length]).copied())
}

/// A way from a module back to itself, if there is one.
fn circle<'a>(edges: &BTreeMap<&'a [String], BTreeSet<&'a [String]>>, from: &'a [String]) -> Option<Vec<&'a [String]>> {
    let mut ways: Vec<Vec<&[String]>> = vec![vec![from]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        let last = *way.last()?;
        for &next in edges.get(last).into_iter().flatten() {
            let longer = [&way[..], &[next]].concat();
            if next == from {
                return Some(longer);
            }
            if seen.insert(next) {
                ways.push(longer);
            }
        }
    }
    None
}

/// One file of the crate.
struct Source {
    path: PathBuf,
    /// Its module's path in the crate.
    module: Vec<String>,
    /// The paths in the crate that its `use` lines name.
    imports: Vec<Vec<String>>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                sources.push(Source::read(&root, path));
            }
        }
    }
    assert!(sources.len() > 100);
    sources
}

impl Source {
    fn read(root: &Path, path: PathBuf) -> Self {
        let inner = path.strip_prefix(root).unwrap().with_extension("");
        let mut module: Vec<String> = inner.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|last| last == "mod" || last == "main") {
            module.pop();
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let statements = code.split("\nuse ").skip(1).chain(code.split("\npub use ").skip(1));
        let named = statements.filter_map(|rest| rest.split(';').next()).flat_map(flatten);
        let imports = named.filter_map(|path| resolve(&module, &path)).collect();
        Self { path, module, imports }
    }
}

/// The paths that a `use` names: each leaf of its tree.
fn flatten(statement: &str) -> Vec<String> {
    let statement = statement.trim();
    let Some((stem, list)) = statement.split_once('{') else { return vec![statement.to_owned()] };
    let list = &list[..list.rfind('}').unwrap()];
    let (mut depth, mut begin, mut leaves) = (0, 0, Vec::new());
    for (at, character) in list.char_indices().chain([(list.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let item = list[begin..at].trim();
                if !item.is_empty() {
                    leaves.extend(flatten(&format!("{stem}{item}")));
                }
                begin = at + 1;
            }
            _ => {}
        }
    }
    leaves
}

/// A path as seen from a module, from the crate's root; `None` for other crates.
fn resolve(module: &[String], path: &str) -> Option<Vec<String>> {
    let mut parts = path.split("::").map(|part| part.split(" as ").next().unwrap_or_default().trim().to_owned());
    let mut resolved = match parts.next()?.as_str() {
        "crate" | "planb" => Vec::new(),
        "super" => module[..module.len().saturating_sub(1)].to_vec(),
        "self" => module.to_vec(),
        _ => return None,
    };
    for part in parts {
        match part.as_str() {
            "super" => drop(resolved.pop()),
            "self" => {}
            _ => resolved.push(part),
        }
    }
    Some(resolved)
}

#[test]
fn use_lines_are_understood() {
    let module: Vec<String> = ["proxy", "downstream", "http1"].map(str::to_owned).to_vec();
    let resolved = |statement: &str| {
        let paths = flatten(statement).into_iter().filter_map(|path| resolve(&module, &path));
        paths.map(|path| path.join("::")).collect::<Vec<_>>()
    };
    assert_eq!(resolved("std::io"), Vec::<String>::new());
    assert_eq!(resolved("super::lifetime::Ending"), ["proxy::downstream::lifetime::Ending"]);
    assert_eq!(
        resolved("crate::{clock::Clock, proxy::{self, forward::{Answer, Turn as Other}}}"),
        ["clock::Clock", "proxy", "proxy::forward::Answer", "proxy::forward::Turn"]
    );
}

#[test]
fn each_direct_dependency_has_its_reason() {
    let read = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (manifest, page) = (read("Cargo.toml"), read("docs/dependencies.md"));
    let (_, dependencies) = manifest.split_once("[dependencies]\n").unwrap();
    let names = dependencies.lines().take_while(|line| !line.starts_with('['));
    let names: BTreeSet<&str> = names.filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | ")).map(|(name, _)| name);
    assert_eq!(names, rows.collect());
}
