//! The default path of the socket between proxy and worker.

use std::path::{Path, PathBuf};

const SYSTEM_FOLDER: &str = "/run/pillion";
const FILE: &str = "worker.sock";

/// Returns the socket's path if `--socket` is not given. It is `/run/pillion/worker.sock` if that folder can be written,
/// else `pillion/worker.sock` in `$XDG_RUNTIME_DIR` if that can be written, else `pillion-UID/worker.sock` in the system's
/// temporary folder.
///
/// Both programs call this function, so both use the same path. `writable` says whether a folder exists and can be written,
/// `runtime_dir` is `$XDG_RUNTIME_DIR`, `temp_dir` is the temporary folder, and `uid` is the user's id.
///
/// ```
/// use std::path::Path;
/// let path = pillion_protocol::default_socket_path(|_| false, None, Path::new("/tmp"), 1000);
/// assert_eq!(path, Path::new("/tmp/pillion-1000/worker.sock"));
/// ```
pub fn default_socket_path(
    writable: impl Fn(&Path) -> bool,
    runtime_dir: Option<&Path>,
    temp_dir: &Path,
    uid: u32,
) -> PathBuf {
    let system = Path::new(SYSTEM_FOLDER);
    if writable(system) {
        return system.join(FILE);
    }
    match runtime_dir {
        Some(folder) if writable(folder) => folder.join("pillion").join(FILE),
        _ => temp_dir.join(format!("pillion-{uid}")).join(FILE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_folder_comes_first() {
        let path = default_socket_path(|_| true, Some(Path::new("/run/user/7")), Path::new("/tmp"), 7);
        assert_eq!(path, Path::new("/run/pillion/worker.sock"));
    }

    #[test]
    fn the_users_runtime_folder_comes_second() {
        let path = default_socket_path(
            |folder| folder == Path::new("/run/user/7"),
            Some(Path::new("/run/user/7")),
            Path::new("/tmp"),
            7,
        );
        assert_eq!(path, Path::new("/run/user/7/pillion/worker.sock"));
    }
}
