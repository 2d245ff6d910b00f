//! Tells the loader where to find the engine's library at run time: in the source tree, in an image, or in the wheel.

use std::env;
use std::path::{Component, Path, PathBuf};

/// The library's folder in an image, seen from `/usr/bin`, and in the wheel, seen from `site-packages/pillion/bin`.
const INSTALLED: [&str; 2] = ["../lib/pillion", "../../ctranslate2.libs"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // CTranslate2 that is built from source is linked into the program.
    if env::var_os("CARGO_FEATURE_READY_MADE").is_none() {
        return;
    }
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let engine = package.parent().expect("the package lies in the tree").join("deploy/engine/lib");
    println!("cargo::rerun-if-changed={}", engine.display());
    if !engine.is_dir() {
        println!(
            "cargo::error=the engine's library is missing in deploy/engine: run deploy/setup once, which fetches it"
        );
        return;
    }
    // OUT_DIR is TARGET/PROFILE/build/pillion-worker-HASH/out. Programs are in TARGET/PROFILE, tests and examples in its folders.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let programs = out.ancestors().nth(3).expect("cargo's layout");
    // The loader uses the program's real path for $ORIGIN, and the target folder may be a link.
    let real = |folder: &Path| folder.canonicalize().expect("it is there");
    let in_tree = relative(&real(programs), &real(&engine));
    for folder in [in_tree.clone(), Path::new("..").join(in_tree)].iter().map(PathBuf::as_path) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/{}", folder.display());
    }
    for folder in INSTALLED {
        println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/{folder}");
    }
}

/// The relative path from one folder to another.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let (from, to): (Vec<Component>, Vec<Component>) = (from.components().collect(), to.components().collect());
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    from[common..].iter().map(|_| Component::ParentDir).chain(to[common..].iter().copied()).collect()
}
