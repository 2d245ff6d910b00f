//! The memory, processor time, descriptors and threads that a running process uses.

use std::path::Path;

use crate::process::Process;

/// What a process uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// The memory that the process has, in bytes.
    pub resident: u64,
    /// The most memory that the process ever had, in bytes.
    pub most: u64,
    /// Seconds of processor time that the process has used.
    pub cpu: f64,
    /// The number of open files, sockets and other descriptors.
    pub descriptors: u64,
    /// The number of threads.
    pub threads: u64,
}

impl Usage {
    /// Reads what a running process uses.
    ///
    /// # Panics
    /// The process has ended.
    pub fn of(process: &Process) -> Self {
        let folder = Path::new("/proc").join(process.pid().expect("it runs").to_string());
        let status = std::fs::read_to_string(folder.join("status")).expect("its status can be read");
        let number = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of each");
            line.trim_matches([':', '\t', ' ', 'k', 'B']).parse().expect("a number")
        };
        let stat = std::fs::read_to_string(folder.join("stat")).expect("its times can be read");
        // The name may hold anything, so the fields are counted from behind it. The 12th and 13th are the user's and
        // the system's time, in hundredths of a second.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let hundredths = |nth: usize| fields.split_whitespace().nth(nth).and_then(|field| field.parse::<f64>().ok());
        let cpu: f64 = [11, 12].into_iter().filter_map(hundredths).sum::<f64>() / 100.0;
        let descriptors = std::fs::read_dir(folder.join("fd")).expect("they can be listed").count();
        Self {
            resident: number("VmRSS") << 10,
            most: number("VmHWM") << 10,
            cpu,
            descriptors: u64::try_from(descriptors).expect("not so many"),
            threads: number("Threads"),
        }
    }
}
