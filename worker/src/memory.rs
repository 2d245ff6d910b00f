//! How many tokens fit the processor's memory: what a batch's tokens take, measured while the engine warms up, beside what
//! is free for this process. Linux tells both in files; where one is missing, nothing is concluded.
//!
//! A GPU's memory is not measured: there a call that is too much fails and is made smaller (see [`crate::budget`]), while
//! on a processor the kernel would kill the whole process.

use std::fs;
use std::path::Path;

/// The part of the free memory that batches may take: the rest is for prompts on their way, and for whoever else wants it.
const PART: (u64, u64) = (3, 4);

/// The most tokens of a call, where each takes so many bytes, so many bytes are free and so many calls run at once.
pub fn tokens(free: u64, bytes_per_token: u64, calls: u64) -> u64 {
    free / PART.1 * PART.0 / calls.max(1) / bytes_per_token.max(1)
}

/// Bytes that this process can take yet: what the system has left, or what its control groups allow if that is less.
pub fn free() -> Option<u64> {
    let available = field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // Version 2 has one line, with the path below the root that this process sees.
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Some(groups(Path::new("/sys/fs/cgroup"), Path::new(path)).map_or(available, |left| left.min(available)))
}

/// What the strictest of a control group and those above it leaves, if any sets a limit.
fn groups(root: &Path, path: &Path) -> Option<u64> {
    path.ancestors().filter_map(|group| left(&root.join(group))).min()
}

/// Bytes below the limit of one group. What only caches files counts as free: the kernel gives it up when asked.
fn left(group: &Path) -> Option<u64> {
    let read = |name| fs::read_to_string(group.join(name)).ok();
    let most: u64 = read("memory.max")?.trim().parse().ok()?;
    let taken: u64 = read("memory.current")?.trim().parse().ok()?;
    let files: u64 = read("memory.stat")?.lines().find_map(|line| line.strip_prefix("file ")?.parse().ok())?;
    Some(most.saturating_sub(taken.saturating_sub(files)))
}

/// By how many bytes the process is larger at its largest during `work` than it was before.
pub fn growth<T>(work: impl FnOnce() -> T) -> (T, Option<u64>) {
    // 5 resets the peak (proc_pid_clear_refs(5)).
    let was_reset = fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = own("VmRSS:");
    let done = work();
    let grown = before.zip(own("VmHWM:")).map(|(before, peak)| peak.saturating_sub(before));
    (done, grown.filter(|_| was_reset))
}

fn own(name: &str) -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, name)
}

/// A line of the form `NAME 12 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::Scratch;

    fn group(at: &Path, most: &str, taken: u64, files: u64) {
        fs::create_dir_all(at).unwrap();
        fs::write(at.join("memory.max"), most).unwrap();
        fs::write(at.join("memory.current"), format!("{taken}\n")).unwrap();
        fs::write(at.join("memory.stat"), format!("anon 1\nfile {files}\nfile_mapped 7\n")).unwrap();
    }

    #[test]
    fn the_strictest_group_counts() {
        let scratch = Scratch::new("groups");
        let (root, pod) = (scratch.0.as_path(), scratch.0.join("pod"));
        group(&pod.join("worker"), "max\n", 600, 0);
        assert_eq!(groups(root, Path::new("pod/worker")), None, "none sets a limit");
        group(&pod, "1000\n", 700, 200);
        assert_eq!(groups(root, Path::new("pod/worker")), Some(500));
        group(&pod.join("worker"), "800\n", 600, 0);
        assert_eq!(groups(root, Path::new("pod/worker")), Some(200));
        group(&pod.join("worker"), "500\n", 600, 0);
        assert_eq!(groups(root, Path::new("pod/worker")), Some(0), "the limit was lowered");
    }

    #[test]
    fn this_process_has_memory_left() {
        assert!(free().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn what_work_takes_is_seen() {
        const MUCH: usize = 64 << 20;
        let (length, grown) = growth(|| std::hint::black_box(vec![1u8; MUCH]).len());
        let grown = grown.unwrap();
        assert!(length == MUCH && grown > MUCH as u64 / 2 && grown < 4 * MUCH as u64, "{grown}");
    }

    #[test]
    fn calls_share_what_is_free() {
        assert_eq!(tokens(4000, 10, 1), 300);
        assert_eq!(tokens(4000, 10, 3), 100);
        assert_eq!(tokens(4000, 0, 0), 3000);
    }
}
