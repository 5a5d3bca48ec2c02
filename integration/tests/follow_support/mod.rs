//! A file system in this process, over FUSE, that shows a directory. What is changed in the directory itself, and not through the mount,
//! is what another host does to a network file system: it is there when one looks, and no notice tells of it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request,
};

/// Nothing is remembered by the kernel: every look is one at the directory.
const NEVER: Duration = Duration::ZERO;

/// The mount, until it is dropped.
pub struct Far(BackgroundSession);

impl Far {
    /// Shows `of` at `at`; the kernel's reason if it may not.
    pub fn mount(of: &Path, at: &Path) -> io::Result<Far> {
        let root = File::open(of)?;
        let shown = Shown { nodes: Mutex::new(HashMap::from([(INodeNo::ROOT.0, root)])) };
        fuser::spawn_mount(shown, at, &Config::default()).map(Far)
    }

    /// Takes it away.
    pub fn unmount(self) {
        self.0.umount_and_join().expect("nobody holds it");
    }
}

/// Every inode that was looked up, held open, so that its number is no other file's.
struct Shown {
    nodes: Mutex<HashMap<u64, File>>,
}

impl Shown {
    fn with<T>(&self, number: INodeNo, act: impl FnOnce(&File) -> io::Result<T>) -> Result<T, Errno> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let file = nodes.get(&number.0).ok_or(Errno::ENOENT)?;
        act(file).map_err(Errno::from)
    }
}

fn inside(dir: &File, name: &OsStr) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)
}

fn kind(meta: &Metadata) -> FileType {
    match meta.file_type() {
        kind if kind.is_dir() => FileType::Directory,
        kind if kind.is_fifo() => FileType::NamedPipe,
        _ => FileType::RegularFile,
    }
}

fn attributes(number: INodeNo, meta: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| UNIX_EPOCH + Duration::new(seconds as u64, nanos as u32);
    FileAttr {
        ino: number,
        size: meta.len(),
        blocks: meta.blocks(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: kind(meta),
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Shown {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.with(parent, |dir| {
            // A FIFO is not waited for.
            let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(inside(dir, name))?;
            file.metadata().map(|meta| (file, meta))
        });
        match found {
            Ok((file, meta)) => {
                let attributes = attributes(INodeNo(meta.ino()), &meta);
                self.nodes.lock().unwrap_or_else(PoisonError::into_inner).entry(meta.ino()).or_insert(file);
                reply.entry(&NEVER, &attributes, Generation(0));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(number, File::metadata) {
            Ok(meta) => reply.attr(&NEVER, &attributes(number, &meta)),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        match self.with(number, |file| file.read_at(&mut bytes, offset)) {
            Ok(n) => reply.data(&bytes[..n]),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = self.with(number, |dir| inside(dir, OsStr::new(".")).read_dir()?.collect::<io::Result<Vec<_>>>());
        match entries {
            Ok(entries) => {
                for (next, entry) in (1..).zip(entries).skip(offset as usize) {
                    let kind = if entry.path().is_dir() { FileType::Directory } else { FileType::RegularFile };
                    if reply.add(INodeNo(entry.ino()), next, kind, entry.file_name()) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }
}
