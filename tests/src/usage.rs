//! What a running process takes of the machine.

use std::path::Path;

use crate::process::Process;

/// A process's share of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Memory that it has, in bytes.
    pub resident: u64,
    /// The most that it ever had.
    pub most: u64,
    /// Seconds of a processor that it has used.
    pub cpu: f64,
    /// Files, sockets and the like that are open.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// Of a running process.
    ///
    /// # Panics
    /// It has ended.
    pub fn of(process: &Process) -> Self {
        let folder = Path::new("/proc").join(process.pid().expect("it runs").to_string());
        let status = std::fs::read_to_string(folder.join("status")).expect("its status can be read");
        let number = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of each");
            line.trim_matches([':', '\t', ' ', 'k', 'B']).parse().expect("a number")
        };
        let stat = std::fs::read_to_string(folder.join("stat")).expect("its times can be read");
        // After the name, which may hold anything: user's and system's time are the 12th and 13th, in hundredths.
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
