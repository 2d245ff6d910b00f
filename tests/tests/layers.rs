//! Imports go downwards: no file imports one that imports it, and each module only modules of its own layer or below.
//!
//! A file that only hands on names of its submodules (`pub use self::…`) is a face: whoever imports a name from it imports
//! the file that defines the name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemUse, UseTree, Visibility};

/// The proxy's modules, from the bottom.
const PROXY: &[&[&str]] = &[
    &["address", "descriptors", "numbers", "signals", "socket"],
    &["auth", "check", "config", "metrics"],
    &["domain"],
    &["admission", "policy"],
    &["scheduler"],
    &["link"],
    &["api"],
    &["http"],
    &["transport"],
    &["app"],
    &["main"],
];

/// Modules by path: `a::b` is `src/a/b.rs`, and the crate itself is empty.
type Sources = BTreeMap<String, String>;

#[test]
fn the_proxys_imports_go_downwards() {
    let sources = read("proxy");
    assert!(sources.len() > 40, "the proxy's files were not found");
    let imports = imports(&sources);
    assert_eq!(circle(&imports), None);
    assert_eq!(upward(&imports, PROXY), Vec::<String>::new());
}

#[test]
fn one_file_of_the_proxy_chooses_statuses() {
    let choose: Vec<_> = read("proxy").into_iter().filter(|(_, text)| text.contains("StatusCode")).collect();
    assert_eq!(choose.iter().map(|(module, _)| module.as_str()).collect::<Vec<_>>(), ["http::response"]);
}

/// The layers of the table in `worker/README.md`, from the bottom.
fn workers_layers() -> Vec<Vec<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("worker/README.md");
    let text = std::fs::read_to_string(page).unwrap();
    let table = text.split("## Code map").nth(1).unwrap().split("\n## ").next().unwrap();
    let files = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let modules = |files: &str| {
        let names = files.split('`').filter_map(|name| name.strip_suffix(".rs"));
        names.map(str::to_owned).collect()
    };
    let mut layers: Vec<_> = files.map(modules).collect();
    layers.reverse();
    layers
}

#[test]
fn the_workers_imports_go_downwards_and_round_in_no_circle() {
    let sources = read("worker");
    assert!(sources.len() > 40, "the worker's files were not found");
    let imports = imports(&sources);
    assert_eq!(circle(&imports), None);
    let layers = workers_layers();
    let layers: Vec<Vec<&str>> = layers.iter().map(|layer| layer.iter().map(String::as_str).collect()).collect();
    let layers: Vec<&[&str]> = layers.iter().map(Vec::as_slice).collect();
    assert_eq!(upward(&imports, &layers), Vec::<String>::new());
    for file in layers.concat() {
        assert!(sources.contains_key(file), "worker/README.md names {file}.rs, which is not there");
    }
}

#[test]
fn one_file_of_the_worker_knows_ct2rs() {
    let know: Vec<_> = read("worker").into_iter().filter(|(_, text)| text.contains("ct2rs")).collect();
    assert_eq!(know.iter().map(|(module, _)| module.as_str()).collect::<Vec<_>>(), ["engine::ct2"]);
}

fn read(package: &str) -> Sources {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(package).join("src");
    let mut sources = Sources::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.insert(module(path.strip_prefix(&root).unwrap()), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    // Modules of tests, which have files of their own.
    sources.retain(|name, _| !name.split("::").any(|part| part == "tests"));
    sources
}

/// `a/b.rs` is `a::b`, `lib.rs` the crate.
fn module(path: &Path) -> String {
    let path: PathBuf = path.with_extension("");
    let parts: Vec<_> = path.iter().map(|part| part.to_str().unwrap()).collect();
    if parts == ["lib"] { String::new() } else { parts.join("::") }
}

/// By file, the files that it imports from.
fn imports(sources: &Sources) -> BTreeMap<String, BTreeSet<String>> {
    let found: BTreeMap<&str, Found> = sources
        .iter()
        .map(|(name, text)| {
            let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut found = Found::new(name);
            found.visit_file(&file);
            (name.as_str(), found)
        })
        .collect();
    let resolve = |path: &[String]| {
        let mut path = path.to_vec();
        // A face sends on to where the name is defined; faces behind faces end, since modules do.
        for _ in 0..8 {
            let depth = (0..=path.len()).rev().find(|&depth| sources.contains_key(&path[..depth].join("::")))?;
            let (module, rest) = (path[..depth].join("::"), &path[depth..]);
            match rest.first().and_then(|name| found[module.as_str()].handed_on.get(name)) {
                Some(target) => path = [target.as_slice(), &rest[1..]].concat(),
                None => return Some(module),
            }
        }
        None
    };
    found
        .iter()
        .map(|(name, found)| {
            let targets = found.paths.iter().filter_map(|path| resolve(path));
            ((*name).to_owned(), targets.filter(|target| target != name && !target.is_empty()).collect())
        })
        .collect()
}

/// What a file names.
struct Found {
    module: Vec<String>,
    /// Paths from the crate's root.
    paths: Vec<Vec<String>>,
    /// Names that it hands on, and where they come from.
    handed_on: BTreeMap<String, Vec<String>>,
}

impl Found {
    fn new(module: &str) -> Self {
        let module = module.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Self { module, paths: Vec::new(), handed_on: BTreeMap::new() }
    }

    /// The path from the crate's root; `None` for another crate's.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let supers = path.iter().take_while(|part| *part == "super").count();
        let base = match path.first()?.as_str() {
            "crate" | "pillion_proxy" | "pillion_worker" => &[],
            "self" => &self.module[..],
            "super" => &self.module[..self.module.len().checked_sub(supers)?],
            _ => return None,
        };
        Some([base, &path[supers.max(1)..]].concat())
    }

    fn leaves(tree: &UseTree, before: &[String], out: &mut Vec<(Vec<String>, String)>) {
        match tree {
            UseTree::Path(path) => Self::leaves(&path.tree, &[before, &[path.ident.to_string()]].concat(), out),
            UseTree::Group(group) => group.items.iter().for_each(|tree| Self::leaves(tree, before, out)),
            UseTree::Name(name) if name.ident == "self" => out.push((before.to_vec(), String::new())),
            UseTree::Name(name) => {
                out.push(([before, &[name.ident.to_string()]].concat(), name.ident.to_string()));
            }
            UseTree::Rename(rename) => {
                out.push(([before, &[rename.ident.to_string()]].concat(), rename.rename.to_string()));
            }
            UseTree::Glob(_) => out.push((before.to_vec(), String::new())),
        }
    }
}

impl<'a> Visit<'a> for Found {
    fn visit_item(&mut self, item: &'a Item) {
        let attributes: &[Attribute] = match item {
            Item::Mod(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => &[],
        };
        let is_test = |attribute: &Attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
        };
        if !attributes.iter().any(is_test) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        let mut leaves = Vec::new();
        Self::leaves(&item.tree, &[], &mut leaves);
        for (path, name) in leaves {
            let Some(target) = self.absolute(&path) else { continue };
            let is_face = !matches!(item.vis, Visibility::Inherited) && target.starts_with(&self.module);
            if is_face {
                self.handed_on.insert(name, target);
            } else {
                self.paths.push(target);
            }
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1
            && let Some(target) = self.absolute(&parts)
        {
            self.paths.push(target);
        }
        visit::visit_path(self, path);
    }
}

/// Files that import each other in a circle, if there are any.
fn circle(imports: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut left = imports.clone();
    // Whoever imports nothing that is left is in no circle.
    loop {
        let known: BTreeSet<String> = left.keys().cloned().collect();
        let before = left.len();
        left.retain(|_, targets| targets.iter().any(|target| known.contains(target)));
        if left.len() == before {
            break;
        }
    }
    let mut way: Vec<String> = vec![left.keys().next()?.clone()];
    loop {
        let next = left[way.last()?].iter().find(|target| left.contains_key(*target))?.clone();
        let seen = way.iter().position(|name| *name == next);
        way.push(next);
        if let Some(seen) = seen {
            return Some(way.split_off(seen));
        }
    }
}

/// Imports of a module from one above it, and of modules that no layer names.
fn upward(imports: &BTreeMap<String, BTreeSet<String>>, layers: &[&[&str]]) -> Vec<String> {
    let layer = |name: &str| {
        let top = name.split("::").next().unwrap_or_default();
        layers.iter().position(|layer| layer.contains(&top))
    };
    let of_file = |(name, targets): (&String, &BTreeSet<String>)| {
        let wrong = |target: &&String| name.is_empty() || layer(name).is_none() || layer(target) > layer(name);
        let wrong = targets.iter().filter(wrong).map(|target| format!("{name} imports {target}"));
        wrong.collect::<Vec<_>>()
    };
    imports.iter().filter(|(name, _)| !name.is_empty()).flat_map(of_file).collect()
}

fn sources(files: &[(&str, &str)]) -> Sources {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

const LAYERS: &[&[&str]] = &[&["low"], &["high"]];

#[test]
fn an_upward_import_is_found() {
    for import in ["use crate::high::Thing;", "use super::high::{self};", "fn f() { crate::high::call(); }"] {
        let imports = imports(&sources(&[("", "mod low; mod high;"), ("low", import), ("high", "")]));
        assert_eq!(upward(&imports, LAYERS), ["low imports high"], "{import}");
    }
    let fine =
        [("", ""), ("low", "#[cfg(test)] mod tests { use crate::high::Thing; }"), ("high", "use crate::low::X;")];
    assert_eq!(upward(&imports(&sources(&fine)), LAYERS), Vec::<String>::new());
}

#[test]
fn a_circle_is_found_and_a_face_is_none() {
    let files =
        [("a", "use super::b::B;"), ("b", "use crate::c::deep::C;"), ("c", ""), ("c::deep", "use crate::a::A;")];
    let found = circle(&imports(&sources(&files))).unwrap();
    assert_eq!(found.len(), 4, "{found:?}");
    let face =
        [("", ""), ("c", "mod one; mod two; pub use self::one::One;"), ("c::one", ""), ("c::two", "use super::One;")];
    let imports = imports(&sources(&face));
    assert_eq!(imports["c::two"].iter().collect::<Vec<_>>(), ["c::one"]);
    assert_eq!(circle(&imports), None);
}

#[test]
fn a_parent_and_a_child_that_import_each_other_are_a_circle() {
    let files = [("a", "mod b; use self::b::B; pub struct A;"), ("a::b", "use super::A; pub struct B;")];
    assert!(circle(&imports(&sources(&files))).is_some());
}
