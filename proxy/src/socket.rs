//! The Unix-domain socket that workers connect to. The next proxy can take over its path, and only some users may connect.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use interprocess::local_socket::tokio::{Listener, Stream, prelude::*};
use interprocess::local_socket::{GenericFilePath, ListenerOptions, ToFsName};
use interprocess::os::unix::local_socket::ListenerOptionsExt;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use pillion_process::socket;
use tracing::warn;

/// The mode of the socket: owner and group may connect. The containers of a pod share a group.
const MODE: u32 = 0o660;
/// The mode of a folder that is created for the socket: the group can reach the socket.
const FOLDER_MODE: u32 = 0o750;

/// A listening socket. Dropping it removes its file, unless another proxy has bound the path.
#[derive(Debug)]
pub struct WorkerSocket {
    listener: Listener,
    path: PathBuf,
    inode: u64,
    allowed: Vec<u32>,
}

/// Where a worker that dials a socket's path arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathLeadsTo {
    /// At the socket.
    Us,
    /// The path does not exist any more.
    Nothing,
    /// At another socket.
    Another,
}

impl WorkerSocket {
    /// Binds `path` for workers of this user and of the users `allowed`.
    ///
    /// The socket is bound under another name and renamed into place, so that the path is at no time without a socket: it
    /// leads to the old one, then to the new one. A socket that a dead process left behind is replaced.
    ///
    /// # Errors
    /// The folder cannot be created or written, or could be another user's, or the path exists and is not a socket.
    pub fn bind(path: &Path, allowed: &[u32]) -> io::Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        }
        socket::check(path)?;
        if let Ok(there) = fs::symlink_metadata(path)
            && !std::os::unix::fs::FileTypeExt::is_socket(&there.file_type())
        {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is not a socket"));
        }
        if is_listened_to(path) {
            warn!(socket = %path.display(), "another proxy listens on the workers' socket; this one takes it over");
        }
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let name = temporary.as_path().to_fs_name::<GenericFilePath>()?;
        let listener = ListenerOptions::new().name(name).mode(MODE).reclaim_name(false).create_tokio()?;
        // The umask may have removed bits of the mode.
        fs::set_permissions(&temporary, Permissions::from_mode(MODE))?;
        let inode = fs::symlink_metadata(&temporary)?.ino();
        fs::rename(&temporary, path)?;
        Ok(Self { listener, path: path.to_owned(), inode, allowed: allowed.to_owned() })
    }

    /// Where a worker that dials the path arrives.
    pub fn path_leads_to(&self) -> PathLeadsTo {
        match fs::symlink_metadata(&self.path) {
            Ok(there) if there.ino() != self.inode => PathLeadsTo::Another,
            Err(error) if error.kind() == io::ErrorKind::NotFound => PathLeadsTo::Nothing,
            _ => PathLeadsTo::Us,
        }
    }

    /// Binds the path again. Workers whose connections were not accepted yet connect again.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_again(&mut self) -> io::Result<()> {
        *self = Self::bind(&self.path, &self.allowed)?;
        Ok(())
    }

    /// Accepts the next connection. The inner error is the user of a process that is not allowed.
    ///
    /// # Errors
    /// The system has no descriptor or memory left.
    pub async fn accept(&self) -> io::Result<Result<Stream, Uid>> {
        let stream = self.listener.accept().await?;
        let Stream::UdSocket(socket) = &stream;
        let user = Uid::from_raw(getsockopt(socket.inner(), PeerCredentials)?.uid());
        let is_allowed = user == Uid::effective() || self.allowed.contains(&user.as_raw());
        Ok(if is_allowed { Ok(stream) } else { Err(user) })
    }
}

/// Whether a process listens on the socket at this path. Does not wait for that process to accept.
fn is_listened_to(path: &Path) -> bool {
    let (flags, family) = (SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, AddressFamily::Unix);
    let dialled = UnixAddr::new(path).and_then(|address| {
        let socket = nix::sys::socket::socket(family, SockType::Stream, flags, None)?;
        nix::sys::socket::connect(socket.as_raw_fd(), &address)
    });
    // EAGAIN: so many connections wait that no more fit.
    matches!(dialled, Ok(()) | Err(Errno::EAGAIN))
}

impl Drop for WorkerSocket {
    fn drop(&mut self) {
        if self.path_leads_to() == PathLeadsTo::Us {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("pillion-socket-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[tokio::test]
    async fn a_new_socket_takes_over_the_path_and_dropping_the_old_one_keeps_it() {
        let folder = folder("successor");
        let path = folder.join("worker.sock");
        let old = WorkerSocket::bind(&path, &[]).unwrap();
        let new = WorkerSocket::bind(&path, &[]).unwrap();
        drop(old);
        let name = path.as_path().to_fs_name::<GenericFilePath>().unwrap();
        let (dialled, accepted) = tokio::join!(Stream::connect(name), new.accept());
        assert!(dialled.is_ok() && accepted.unwrap().is_ok());
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&folder)), (0o660, 0o750));
        drop(new);
        assert!(!path.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_not_replaced() {
        let folder = folder("file");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("worker.sock");
        fs::write(&path, "precious").unwrap();
        assert!(WorkerSocket::bind(&path, &[]).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_dir_all(folder).unwrap();
    }
}
