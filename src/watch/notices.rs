//! The book of inotify watches: who wants to know what about which directory or file.
//!
//! A path is followed by watching, for each directory on the way to it (through symbolic links too), that directory itself, and
//! the names in it that decide where the path leads. A directory is always watched *before* it is looked into, so whatever
//! changes after the look is told. A file is watched through `/proc/self/fd`, so the watch is on the inode that we hold and not
//! on what its name leads to by then.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use glob::Pattern;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use nix::errno::Errno;
use nix::sys::statfs::{
    AFS_SUPER_MAGIC, CODA_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType, NCP_SUPER_MAGIC, NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, statfs,
};

use super::Polled;
use super::pattern::fits;

/// Somebody with an interest in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Who {
    /// A followed path.
    Place(u32),
    /// A glob.
    Glob(u32),
}

/// What is wanted of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Interest {
    /// That it is moved, deleted, or becomes readable.
    Itself,
    /// Also that this name in it comes or goes.
    Name(OsString),
    /// Also that any name that fits comes or goes.
    Fits(Pattern),
}

/// The interests of one path: what to release when they change.
pub(super) type Trail = HashSet<(Id, Interest)>;

/// The number of a watch.
pub(super) type Id = i32;

/// What the kernel told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Look again where this leads.
    Look(Who),
    /// There is something to read in a file of this place that is watched under this number.
    Data(u32, Id),
    /// Events were lost: look at everything.
    Overflow,
}

struct Node {
    watch: WatchDescriptor,
    interests: HashMap<Interest, HashSet<Who>>,
    /// Patterns among the interests: looked through when a name is told.
    patterns: Vec<Pattern>,
    files: HashSet<u32>,
}

/// The book.
pub(super) struct Notices {
    inotify: Result<(Inotify, Watches), Errno>,
    nodes: HashMap<Id, Node>,
    most: usize,
    buffer: Vec<u8>,
}

impl Notices {
    /// Opens inotify; without it (`EMFILE`) every watch is refused with that error.
    pub(super) fn new(most: usize) -> Notices {
        let inotify = Inotify::init().map(|inotify| {
            let watches = inotify.watches();
            (inotify, watches)
        });
        Notices { inotify: inotify.map_err(|error| errno(&error)), nodes: HashMap::new(), most, buffer: vec![0; 64 * 1024] }
    }

    /// What to wait on.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().ok().map(|(inotify, _)| inotify.as_fd())
    }

    fn add(&mut self, path: &Path, mask: WatchMask) -> Result<&mut Node, Errno> {
        let (_, watches) = self.inotify.as_mut().map_err(|errno| *errno)?;
        let watch = watches.add(path, mask | WatchMask::MASK_ADD).map_err(|error| errno(&error))?;
        let id = watch.get_watch_descriptor_id();
        if self.nodes.len() >= self.most && !self.nodes.contains_key(&id) {
            let _ = watches.remove(watch);
            return Err(Errno::ENOSPC);
        }
        Ok(self.nodes.entry(id).or_insert_with(|| Node {
            watch,
            interests: HashMap::new(),
            patterns: Vec::new(),
            files: HashSet::new(),
        }))
    }

    /// Wants to be told about `dir`. If the kernel can not tell, `polled` says why.
    pub(super) fn want(&mut self, dir: &Path, interest: Interest, who: Who, trail: &mut Trail, polled: &mut Option<Polled>) {
        if let Err(errno) = self.try_want(dir, interest, who, trail) {
            polled.get_or_insert(Polled::Refused(errno));
        }
        if statfs(dir).is_ok_and(|fs| blind(fs.filesystem_type())) {
            *polled = Some(Polled::FileSystem);
        }
    }

    fn try_want(&mut self, dir: &Path, interest: Interest, who: Who, trail: &mut Trail) -> Result<(), Errno> {
        let itself = WatchMask::MOVE_SELF | WatchMask::DELETE_SELF | WatchMask::ATTRIB | WatchMask::ONLYDIR;
        let names = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVED_FROM | WatchMask::MOVED_TO;
        let mask = if interest == Interest::Itself { itself } else { itself | names };
        let node = self.add(dir, mask)?;
        if let Interest::Fits(pattern) = &interest
            && !node.patterns.contains(pattern)
        {
            node.patterns.push(pattern.clone());
        }
        node.interests.entry(interest.clone()).or_default().insert(who);
        trail.insert((node.watch.get_watch_descriptor_id(), interest));
        Ok(())
    }

    /// Wants to be told when there is something to read in `file`, to which `path` leads.
    pub(super) fn want_data(&mut self, file: &File, path: &Path, place: u32) -> Result<Id, Errno> {
        let mask = WatchMask::MODIFY | WatchMask::ATTRIB;
        let node = match self.add(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), mask) {
            Err(Errno::ENOENT) => {
                // No /proc here: by name, if the name still leads to the inode that we hold.
                let (held, named) = (file.metadata(), path.metadata());
                match (held, named) {
                    (Ok(held), Ok(named)) if (held.dev(), held.ino()) == (named.dev(), named.ino()) => self.add(path, mask)?,
                    _ => return Err(Errno::ENOENT),
                }
            }
            other => other?,
        };
        node.files.insert(place);
        Ok(node.watch.get_watch_descriptor_id())
    }

    /// No longer wants what `old` holds and `new` does not.
    pub(super) fn release(&mut self, old: &Trail, new: &Trail, who: Who) {
        for (id, interest) in old.difference(new) {
            if let Some(node) = self.nodes.get_mut(id)
                && let Some(all) = node.interests.get_mut(interest)
            {
                all.remove(&who);
                if all.is_empty() {
                    node.interests.remove(interest);
                    if let Interest::Fits(pattern) = interest {
                        node.patterns.retain(|p| p != pattern);
                    }
                }
                self.tidy(*id);
            }
        }
    }

    /// No longer wants to be told about data in a file.
    pub(super) fn release_data(&mut self, id: Id, place: u32) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.files.remove(&place);
            self.tidy(id);
        }
    }

    fn tidy(&mut self, id: Id) {
        if self.nodes.get(&id).is_some_and(|node| node.interests.is_empty() && node.files.is_empty())
            && let Some(node) = self.nodes.remove(&id)
            && let Ok((_, watches)) = self.inotify.as_mut()
        {
            // EINVAL if the inode is gone already: then the watch is too.
            let _ = watches.remove(node.watch);
        }
    }

    /// Everything told since the last call.
    pub(super) fn drain(&mut self, told: &mut Vec<Notice>) {
        let Ok((inotify, _)) = self.inotify.as_mut() else { return };
        loop {
            // A full read may have left more behind; whatever is left keeps the descriptor ready, so one read is enough.
            let events = match inotify.read_events(&mut self.buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    told.push(Notice::Overflow);
                    continue;
                }
                let id = event.wd.get_watch_descriptor_id();
                let gone = event.mask.contains(EventMask::IGNORED);
                let Some(node) = self.nodes.get(&id) else { continue };
                tell(node, id, event.mask, event.name, told);
                if gone {
                    self.nodes.remove(&id);
                }
            }
            return;
        }
    }

    /// Follows `path` from the root and watches all that decides where it leads. Says where the way ends and why if it leads
    /// nowhere. What the kernel will not tell about is put into `polled`; the look itself goes on.
    pub(super) fn walk(
        &mut self,
        path: &Path,
        who: Who,
        trail: &mut Trail,
        polled: &mut Option<Polled>,
    ) -> Result<(), (PathBuf, Errno)> {
        let mut ahead = names(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let step = at.join(&name);
            // First what is there tells how much there is to watch, then the watch, then what is there counts.
            let plain = !ahead.is_empty() && step.symlink_metadata().is_ok_and(|meta| meta.is_dir());
            let interest = if plain { Interest::Itself } else { Interest::Name(name) };
            self.want(&at, interest, who, trail, polled);
            let mut found = step.symlink_metadata();
            if plain && !found.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
                // Replaced between the two looks.
                if let Some(name) = step.file_name() {
                    self.want(&at, Interest::Name(name.to_owned()), who, trail, polled);
                }
                found = step.symlink_metadata();
            }
            match found {
                Ok(meta) if meta.is_symlink() => {
                    links += 1;
                    if links > 40 {
                        return Err((at, Errno::ELOOP));
                    }
                    let target = step.read_link().map_err(|error| (at.clone(), errno(&error)))?;
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    let mut ahead_of = names(&target);
                    ahead_of.append(&mut ahead);
                    ahead = ahead_of;
                }
                Ok(meta) if !ahead.is_empty() && !meta.is_dir() => return Err((at, Errno::ENOTDIR)),
                Ok(_) => at = step,
                Err(error) => return Err((at, errno(&error))),
            }
        }
        Ok(())
    }
}

fn tell(node: &Node, id: Id, mask: EventMask, name: Option<&OsStr>, told: &mut Vec<Notice>) {
    if mask.intersects(EventMask::MODIFY | EventMask::ATTRIB | EventMask::IGNORED | EventMask::UNMOUNT) && name.is_none() {
        told.extend(node.files.iter().map(|place| Notice::Data(*place, id)));
        if mask.intersects(EventMask::IGNORED | EventMask::UNMOUNT) {
            told.extend(node.files.iter().map(|place| Notice::Look(Who::Place(*place))));
        }
    }
    let Some(name) = name else {
        if !mask.contains(EventMask::MODIFY) {
            told.extend(node.interests.values().flatten().map(|who| Notice::Look(*who)));
        }
        return;
    };
    if let Some(all) = node.interests.get(&Interest::Name(name.to_owned())) {
        told.extend(all.iter().map(|who| Notice::Look(*who)));
    }
    for pattern in node.patterns.iter().filter(|pattern| fits(pattern, name)) {
        if let Some(all) = node.interests.get(&Interest::Fits(pattern.clone())) {
            told.extend(all.iter().map(|who| Notice::Look(*who)));
        }
    }
}

/// File systems that others change without inotify knowing.
pub(super) fn blind(kind: FsType) -> bool {
    // CIFS, SMB2, 9P, Ceph, OCFS2, GFS2, Lustre, and the folders that VirtualBox and VMware share have no name in libc; linux/magic.h,
    // and their own sources, have them.
    let unnamed =
        [0xff53_4d42_u32, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400, 0x7461_636f, 0x0116_1970, 0x0bd0_0bd0, 0x786f_4256, 0xbacb_acbc];
    let named = [NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, FUSE_SUPER_MAGIC, AFS_SUPER_MAGIC, CODA_SUPER_MAGIC, NCP_SUPER_MAGIC];
    named.contains(&kind) || unnamed.map(|magic| FsType(magic as _)).contains(&kind)
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// The errno of an I/O error; `EIO` for one that has none.
pub(super) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
