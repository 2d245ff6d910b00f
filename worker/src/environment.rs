//! What the C library, OpenMP and CTranslate2 read from the environment before `main`, set to what serves fastest.
//!
//! None of it can be changed once the process runs, so the worker replaces itself, once, by the same program with these
//! variables added. Whatever the user has set stays. What each is worth is in `tests/bench/RESULTS.md`.
//!
//! - *Memory.* An engine's call takes and gives back the same large buffers each time. glibc would return them to the
//!   kernel and fault them in again, page by page; it is told to keep them, and to ask for huge pages.
//! - *OpenMP.* A thread that waits for the next parallel piece spins for a while before it sleeps. GNU's default is
//!   milliseconds, in which it takes a processor from the proxy, or from the thread that it waits for; no spinning at
//!   all makes a call half as long again. A thousand turns bridge the gap between two pieces and no more.
//! - *AVX-512.* CTranslate2 has kernels for it and uses them only when told to, because early processors lowered their
//!   clock for them. Those with VBMI2 (Ice Lake and Zen 4, and later) do not.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A variable and its value.
type Variable = (&'static str, &'static str);

/// The thresholds are the largest that glibc takes, and more than any model's buffers need.
const MALLOC: Variable = (
    "GLIBC_TUNABLES",
    "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1073741824:glibc.malloc.top_pad=67108864:\
     glibc.malloc.hugetlb=1",
);
const OPENMP: Variable = ("GOMP_SPINCOUNT", "1000");
/// With this the user has decided how OpenMP waits.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";
const AVX512: Variable = ("CT2_FORCE_CPU_ISA", "AVX512");
/// What CTranslate2's kernels need, and the mark of a processor that runs them at full clock.
const AVX512_FLAGS: [&str; 6] = ["avx512f", "avx512cd", "avx512vl", "avx512bw", "avx512dq", "avx512_vbmi2"];

/// Starts the program again with what is missing in its environment; returns where nothing is.
pub fn prepare(mut arguments: impl Iterator<Item = OsString>) {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let missing = missing(&processor, |name| std::env::var_os(name).is_some());
    if missing.is_empty() {
        return;
    }
    let name = arguments.next().unwrap_or_default();
    // By its own path, so that it keeps its name among the processes.
    let error = match std::env::current_exe() {
        Ok(program) => Command::new(program).arg0(name).args(arguments).envs(missing).exec(),
        Err(error) => error,
    };
    // A program that cannot start itself again serves as it is.
    eprintln!("pillion-worker: serving without the fastest settings: {error}");
}

fn missing(processor: &str, is_set: impl Fn(&str) -> bool) -> Vec<Variable> {
    let mut wanted = vec![MALLOC];
    if !is_set(WAIT_POLICY) {
        wanted.push(OPENMP);
    }
    if runs_avx512(processor) {
        wanted.push(AVX512);
    }
    wanted.retain(|(name, _)| !is_set(name));
    wanted
}

fn runs_avx512(processor: &str) -> bool {
    let flags = processor.lines().find_map(|line| line.strip_prefix("flags"));
    let flags: Vec<&str> = flags.unwrap_or_default().split_whitespace().collect();
    AVX512_FLAGS.iter().all(|flag| flags.contains(flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512cd avx512vl avx512bw avx512dq\n";
    const NEW: &str = "processor\t: 0\nflags\t\t: fpu avx512f avx512cd avx512vl avx512bw avx512dq avx512_vbmi2\n";

    fn names(processor: &str, set: &[&str]) -> Vec<&'static str> {
        missing(processor, |name| set.contains(&name)).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn what_the_user_has_set_stays() {
        assert_eq!(names(NEW, &[]), ["GLIBC_TUNABLES", "GOMP_SPINCOUNT", "CT2_FORCE_CPU_ISA"]);
        assert_eq!(names(NEW, &["CT2_FORCE_CPU_ISA", "GLIBC_TUNABLES"]), ["GOMP_SPINCOUNT"]);
        assert_eq!(names(NEW, &["OMP_WAIT_POLICY"]), ["GLIBC_TUNABLES", "CT2_FORCE_CPU_ISA"]);
    }

    #[test]
    fn with_all_of_it_set_the_program_goes_on() {
        assert_eq!(names(NEW, &["GLIBC_TUNABLES", "GOMP_SPINCOUNT", "CT2_FORCE_CPU_ISA"]), [""; 0]);
    }

    #[test]
    fn a_processor_that_slows_down_for_avx512_is_spared() {
        assert_eq!(names(OLD, &[]), ["GLIBC_TUNABLES", "GOMP_SPINCOUNT"]);
        assert_eq!(names("", &[]), ["GLIBC_TUNABLES", "GOMP_SPINCOUNT"]);
    }
}
