//! Unix sockets to listen on, for the same user of this host only.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen as start_listening, socket_with,
};
use tokio::net::{UnixListener, UnixStream};

/// What fits into `sun_path` besides its closing zero byte (unix(7)).
const MAX_PATH_BYTES: usize = 107;

/// Connections that may wait for `accept`: a few commands of an operator.
const BACKLOG: i32 = 128;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum UdsError {
    /// Choose a shorter path.
    #[error("socket path {} has {} bytes, at most {MAX_PATH_BYTES} are possible; choose a shorter one, e.g. below /run", .path.display(), .path.as_os_str().len())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Stop the other process or choose another path.
    #[error("another process answers on {}; stop it or choose another path", .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Move the file away or choose another path.
    #[error("{} exists and is no socket; move it away or choose another path", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Fix the directory.
    #[error("cannot listen on {}: {source}; check that its directory exists and that this user may write to it", .path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

/// Listens on `path`, mode 0600. A socket that a dead process left there is replaced, one that answers is not.
pub async fn listen(path: &Path) -> Result<Socket, UdsError> {
    if path.as_os_str().len() > MAX_PATH_BYTES {
        return Err(UdsError::PathTooLong {
            path: path.to_owned(),
        });
    }
    remove_stale(path).await?;
    let listener = open(path).map_err(|source| UdsError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(Socket {
        listener,
        path: path.to_owned(),
    })
}

impl Socket {
    /// The next connection. Cancel-safe.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket file was gone already");
        }
    }
}

async fn remove_stale(path: &Path) -> Result<(), UdsError> {
    let path_buf = || path.to_owned();
    let io = |source| UdsError::Io {
        path: path.to_owned(),
        source,
    };
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if !kind.is_socket() {
        return Err(UdsError::NotASocket { path: path_buf() });
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(io),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Whoever lets us connect, or is too busy to (`EAGAIN`), is alive.
        Ok(_) => Err(UdsError::InUse { path: path_buf() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(UdsError::InUse { path: path_buf() }),
        Err(error) => Err(io(error)),
    }
}

/// The mode is set before the name exists, so that there is no moment in which others can connect.
fn open(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    start_listening(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn only_the_owner_can_talk_to_it_and_the_file_goes_with_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("admin.sock");
        let socket = listen(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (client, server) = tokio::join!(UnixStream::connect(&path), socket.accept());
        client.unwrap().write_all(b"hi").await.unwrap();
        let mut heard = Vec::new();
        server.unwrap().read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"hi");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves the file behind");
        let _alive = listen(&path).await.unwrap();
        let error = listen(&path).await.unwrap_err();
        assert!(matches!(error, UdsError::InUse { .. }), "{error}");
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notes.txt");
        fs::write(&path, "keep me").unwrap();
        let error = listen(&path).await.unwrap_err();
        assert!(matches!(error, UdsError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "keep me");
    }

    #[tokio::test]
    async fn a_long_path_says_what_to_do() {
        let fits =
            |bytes: usize| PathBuf::from(format!("/nowhere/{}", "x".repeat(bytes - "/nowhere/".len())));
        let error = listen(&fits(MAX_PATH_BYTES + 1)).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("has 108 bytes, at most 107 are possible; choose a shorter one")
        );
        let error = listen(&fits(MAX_PATH_BYTES)).await.unwrap_err();
        assert!(matches!(error, UdsError::Io { .. }), "{error}");
    }
}
