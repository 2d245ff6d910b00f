//! The path of the socket between proxy and worker if `--socket` is not given, and whether its folder can be trusted.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Uid, access};

const SYSTEM_FOLDER: &str = "/run/pillion";
const FILE: &str = "worker.sock";

/// The socket's path if `--socket` is not given. It is `/run/pillion/worker.sock` if that folder can be written, else
/// `pillion/worker.sock` in `$XDG_RUNTIME_DIR` if that can be written, else `pillion-UID/worker.sock` in the system's temporary
/// folder.
pub fn default_path() -> PathBuf {
    let writable = |folder: &Path| access(folder, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    choose(writable, runtime, &temporary_folder())
}

fn choose(writable: impl Fn(&Path) -> bool, runtime: Option<PathBuf>, temporary: &Path) -> PathBuf {
    let system = Path::new(SYSTEM_FOLDER);
    if writable(system) {
        return system.join(FILE);
    }
    match runtime {
        Some(folder) if writable(&folder) => folder.join("pillion").join(FILE),
        _ => temporary.join(FILE),
    }
}

fn temporary_folder() -> PathBuf {
    std::env::temp_dir().join(format!("pillion-{}", Uid::effective()))
}

/// Checks that no other user than root could have put a socket at this path, if the path is the default one in the system's
/// temporary folder. Every user can make a folder there, with any name. A folder that an operator names is not checked: in a
/// pod, programs of several users share one.
///
/// # Errors
/// The folder does not exist, belongs to another user, or can be written by others.
pub fn check(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent().filter(|folder| *folder == temporary_folder()) else { return Ok(()) };
    if is_private(&fs::symlink_metadata(folder)?, Uid::effective().as_raw()) {
        return Ok(());
    }
    let folder = folder.display();
    Err(io::Error::other(format!("another user may have made {folder}, or can write it: remove it, or set --socket")))
}

/// Whether only `own` and root can write a folder.
fn is_private(folder: &Metadata, own: u32) -> bool {
    folder.is_dir() && [0, own].contains(&folder.uid()) && folder.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{DirBuilderExt, symlink};

    use super::*;

    #[test]
    fn the_system_folder_comes_first_and_the_users_runtime_folder_second() {
        let runtime = || Some(PathBuf::from("/run/user/7"));
        let temporary = Path::new("/tmp/pillion-7");
        let path = |writable: &dyn Fn(&Path) -> bool| choose(writable, runtime(), temporary);
        assert_eq!(path(&|_| true), Path::new("/run/pillion/worker.sock"));
        assert_eq!(path(&|folder| folder == "/run/user/7"), Path::new("/run/user/7/pillion/worker.sock"));
        assert_eq!(path(&|_| false), Path::new("/tmp/pillion-7/worker.sock"));
        assert_eq!(choose(|folder| folder == "", None, temporary), Path::new("/tmp/pillion-7/worker.sock"));
    }

    #[test]
    fn only_a_folder_that_nobody_else_can_write_is_private() {
        let folder = std::env::temp_dir().join(format!("pillion-private-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::DirBuilder::new().mode(0o750).create(&folder).unwrap();
        let metadata = || fs::symlink_metadata(&folder).unwrap();
        let own = metadata().uid();
        assert!(is_private(&metadata(), own));
        if own != 0 {
            assert!(!is_private(&metadata(), own + 1), "another user's folder");
        }
        for mode in [0o770, 0o757, 0o777] {
            fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            assert!(!is_private(&metadata(), own), "{mode:o}");
        }
        let link = folder.join("link");
        symlink(&folder, &link).unwrap();
        assert!(!is_private(&fs::symlink_metadata(&link).unwrap(), own), "where a link leads can change");
        fs::remove_dir_all(folder).unwrap();
    }
}
