//! The memory that this process can still take, from Linux's files or, on a GPU, from `nvidia-smi`. It is unknown if these are
//! missing.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The longest that `nvidia-smi` may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A larger limit means no limit: version 1 of control groups then shows the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 60;

/// Bytes of the system's memory that this process can still take: the system's free memory, or less if its control groups
/// allow less.
pub fn system() -> Option<u64> {
    let available = field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = groups(Path::new("/sys/fs/cgroup"), &own);
    Some(left.map_or(available, |left| left.min(available)))
}

/// The file names and fields of one version of control groups.
struct Version {
    most: &'static str,
    taken: &'static str,
    /// The fields of `memory.stat` for the page cache, and for the part of it that no file backs.
    files: &'static str,
    shared: &'static str,
}

const ONE: Version = Version {
    most: "memory.limit_in_bytes",
    taken: "memory.usage_in_bytes",
    files: "total_cache ",
    shared: "total_shmem ",
};
const TWO: Version = Version { most: "memory.max", taken: "memory.current", files: "file ", shared: "shmem " };

/// The least memory that a process's control groups and their parents leave, if any sets a limit. `own` is the content of
/// `/proc/self/cgroup`: `0::PATH` in version 2, a line `N:memory:PATH` in version 1. If the process does not see that path,
/// the root is its group.
fn groups(root: &Path, own: &str) -> Option<u64> {
    let mut all = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let path = Path::new(path.trim_start_matches('/'));
        if controllers.is_empty() {
            all.extend(path.ancestors().filter_map(|group| TWO.left(&root.join(group))));
        } else if controllers.split(',').any(|controller| controller == "memory") {
            let root = root.join("memory");
            all.extend(path.ancestors().filter_map(|group| ONE.left(&root.join(group))));
        }
    }
    all.into_iter().min()
}

impl Version {
    /// Bytes left below the limit of one group. The page cache of files counts as free, since the kernel drops it when needed.
    fn left(&self, group: &Path) -> Option<u64> {
        let read = |name| fs::read_to_string(group.join(name)).ok();
        let most: u64 = read(self.most)?.trim().parse().ok().filter(|most| *most < NO_LIMIT)?;
        let taken: u64 = read(self.taken)?.trim().parse().ok()?;
        let stat = read("memory.stat")?;
        let field = |name| stat.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok()).unwrap_or(0);
        let reclaimable = field(self.files).saturating_sub(field(self.shared));
        Some(most.saturating_sub(taken.saturating_sub(reclaimable)))
    }
}

/// Free bytes of a CUDA device's memory, from `nvidia-smi`. `None` if the program is missing or does not know the device.
pub fn device(index: u32) -> Option<u64> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let name = device_name(index, visible.as_deref())?;
    let arguments = ["--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id", &name];
    let mut child = Command::new("nvidia-smi")
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .ok()?;
    let start = Instant::now();
    while child.try_wait().ok()?.is_none() {
        if start.elapsed() > PATIENCE {
            // If the program hangs in the driver, it may not end; the worker does not wait for it.
            let _ = child.kill();
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut output = String::new();
    child.stdout.take()?.read_to_string(&mut output).ok()?;
    mebibytes(&output)
}

/// The driver's number or name of the device that has this number among the devices visible to the process.
fn device_name(index: u32, visible: Option<&str>) -> Option<String> {
    match visible {
        None => Some(index.to_string()),
        Some(all) => {
            all.split(',').nth(index as usize).map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
        }
    }
}

/// Bytes, from a line with a whole number of MiB.
fn mebibytes(output: &str) -> Option<u64> {
    output.lines().next()?.trim().parse::<u64>().ok()?.checked_mul(1 << 20)
}

/// Bytes, from the line `NAME 12 kB` of a text.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::file::tests::Scratch;

    fn group(at: &Path, version: &Version, most: &str, taken: u64, files: u64) {
        fs::create_dir_all(at).unwrap();
        fs::write(at.join(version.most), most).unwrap();
        fs::write(at.join(version.taken), format!("{taken}\n")).unwrap();
        let (file, shmem) = (version.files, version.shared);
        fs::write(at.join("memory.stat"), format!("anon 1\n{file}{files}\nfile_mapped 7\n{shmem}50\n")).unwrap();
    }

    #[test]
    fn the_strictest_group_counts_in_both_versions() {
        let unlimited = "9223372036854771712";
        for (version, folder, line, none) in
            [(TWO, "", "0::/pod/worker", "max\n"), (ONE, "memory", "4:cpu:/\n5:hugetlb,memory:/pod/worker", unlimited)]
        {
            let scratch = Scratch::new("groups");
            let (root, pod) = (scratch.0.as_path(), scratch.0.join(folder).join("pod"));
            group(&pod.join("worker"), &version, none, 600, 50);
            assert_eq!(groups(root, line), None, "none sets a limit");
            group(&pod, &version, "1000\n", 700, 250);
            assert_eq!(groups(root, line), Some(500), "50 of what caches files are no files");
            group(&pod.join("worker"), &version, "800\n", 600, 50);
            assert_eq!(groups(root, line), Some(200));
            group(&pod.join("worker"), &version, "500\n", 600, 50);
            assert_eq!(groups(root, line), Some(0), "the limit was lowered");
        }
    }

    #[test]
    fn a_group_seen_from_within_is_the_root() {
        let scratch = Scratch::new("namespace");
        group(&scratch.0.join("memory"), &ONE, "1000", 700, 50);
        assert_eq!(groups(&scratch.0, "7:memory:/kubepods/pod1/worker"), Some(300));
    }

    #[test]
    fn a_devices_memory_is_read_by_its_own_name() {
        assert_eq!(mebibytes("80994\n"), Some(80_994 << 20));
        assert_eq!((mebibytes(""), mebibytes("[N/A]\n")), (None, None));
        assert_eq!(device_name(1, None).as_deref(), Some("1"));
        assert_eq!(device_name(1, Some("3, GPU-8a56")).as_deref(), Some("GPU-8a56"));
        assert_eq!(device_name(2, Some("3,1")), None);
    }

    #[test]
    fn this_process_has_memory_left() {
        assert!(system().is_some_and(|bytes| bytes > 1 << 20));
    }
}
