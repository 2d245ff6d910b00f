//! Sets the environment variables that the C library, OpenMP and CTranslate2 read before `main` to the fastest values.
//!
//! The variables have no effect once the process runs, so the worker replaces itself, once, by the same program with the
//! variables added. A variable that the user has set keeps its value. `tests/bench/RESULTS.md` has the measured gains.
//!
//! - *Memory.* An engine call allocates and frees the same large buffers each time. glibc would return them to the kernel
//!   and fault them in again page by page. The variable makes glibc keep the buffers and ask for huge pages.
//! - *OpenMP.* A thread that waits for the next parallel section spins for a while before it sleeps. GNU's default is
//!   milliseconds, which takes a processor from the proxy or from the thread that is waited for. Without spinning a call
//!   takes half as long again. A thousand turns bridge the gap between two sections and no more.
//! - *AVX-512.* CTranslate2 has AVX-512 kernels but uses them only on request, because early processors lowered their clock
//!   for AVX-512. Processors with VBMI2 (Ice Lake, Zen 4 and later) do not.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A variable and its value.
type Variable = (&'static str, &'static str);

/// The thresholds are the largest that glibc takes, and larger than any model's buffers.
const MALLOC: Variable = (
    "GLIBC_TUNABLES",
    "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1073741824:glibc.malloc.top_pad=67108864:\
     glibc.malloc.hugetlb=1",
);
const OPENMP: Variable = ("GOMP_SPINCOUNT", "1000");
/// If the user sets this variable, the user has chosen how OpenMP waits.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";
const AVX512: Variable = ("CT2_FORCE_CPU_ISA", "AVX512");
/// The processor features that CTranslate2's kernels need; the last one shows that the processor keeps its clock.
const AVX512_FLAGS: [&str; 6] = ["avx512f", "avx512cd", "avx512vl", "avx512bw", "avx512dq", "avx512_vbmi2"];

/// Replaces the process by the same program with the missing variables. Returns if no variable is missing.
pub fn prepare(mut arguments: impl Iterator<Item = OsString>) {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let missing = missing(&processor, |name| std::env::var_os(name).is_some());
    if missing.is_empty() {
        return;
    }
    let name = arguments.next().unwrap_or_default();
    // The program starts by its own path, so that the process keeps its name.
    let error = match std::env::current_exe() {
        Ok(program) => Command::new(program).arg0(name).args(arguments).envs(missing).exec(),
        Err(error) => error,
    };
    eprintln!("pillion-worker: serving without the fastest memory and thread settings: cannot restart: {error}");
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
    fn variables_of_the_user_keep_their_values() {
        assert_eq!(names(NEW, &[]), ["GLIBC_TUNABLES", "GOMP_SPINCOUNT", "CT2_FORCE_CPU_ISA"]);
        assert_eq!(names(NEW, &["CT2_FORCE_CPU_ISA", "GLIBC_TUNABLES"]), ["GOMP_SPINCOUNT"]);
        assert_eq!(names(NEW, &["OMP_WAIT_POLICY"]), ["GLIBC_TUNABLES", "CT2_FORCE_CPU_ISA"]);
    }

    #[test]
    fn with_all_variables_set_the_program_goes_on() {
        assert_eq!(names(NEW, &["GLIBC_TUNABLES", "GOMP_SPINCOUNT", "CT2_FORCE_CPU_ISA"]), [""; 0]);
    }

    #[test]
    fn a_processor_that_slows_down_for_avx512_is_spared() {
        assert_eq!(names(OLD, &[]), ["GLIBC_TUNABLES", "GOMP_SPINCOUNT"]);
        assert_eq!(names("", &[]), ["GLIBC_TUNABLES", "GOMP_SPINCOUNT"]);
    }
}
