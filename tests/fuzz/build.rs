//! Where the fuzzed worker finds the engine's library, which deploy/setup fetches.

fn main() {
    let tests = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{tests}/../../deploy/engine/lib");
    println!("cargo::rerun-if-changed=build.rs");
}
