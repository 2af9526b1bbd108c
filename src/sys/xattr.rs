//! Extended attributes of files (xattr(7)).

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

/// The longest value that is asked for: security labels are far shorter.
const LONGEST: usize = 4096;

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// An attribute of a file; `None` where there is none, or where the file system has none at all.
///
/// # Errors
/// The kernel's (getxattr(2)).
pub fn get(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let (path, name) = (c_string(path.as_os_str().as_bytes())?, c_string(name.as_bytes())?);
    let mut value = vec![0u8; LONGEST];
    // SAFETY: both strings end with a zero byte, and the kernel writes at most the length given.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match usize::try_from(length) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(_) => match Errno::last() {
            Errno::ENODATA | Errno::ENOTSUP => Ok(None),
            errno => Err(errno.into()),
        },
    }
}

/// Sets an attribute of a file.
///
/// # Errors
/// The kernel's (setxattr(2)).
pub fn set(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_string(path.as_os_str().as_bytes())?, c_string(name.as_bytes())?);
    // SAFETY: both strings end with a zero byte, and the kernel reads as many bytes as the value has.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_that_is_set_is_read_back_and_others_are_absent() {
        let path = std::env::temp_dir().join(format!("podweir-xattr-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        assert_eq!(get(&path, "user.podweir").unwrap(), None);
        match set(&path, "user.podweir", b"label") {
            Ok(()) => assert_eq!(get(&path, "user.podweir").unwrap().as_deref(), Some(&b"label"[..])),
            // A file system without user attributes says so, and has none to read.
            Err(e) => assert_eq!(e.raw_os_error(), Some(Errno::ENOTSUP as i32)),
        }
        assert!(get(Path::new("/no/such/file"), "user.podweir").is_err());
        std::fs::remove_file(path).unwrap();
    }
}
