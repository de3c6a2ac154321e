//! The flaky disk as FUSE sees it.

use super::{BLOCK_BYTES, Call, Content, DiskFile, Failure, Shared, State, What};
use crate::trace::Op;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The largest write that arrives in one request.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Space that statfs reports.
const DISK_BLOCKS: u64 = 1 << 20;
/// What the kernel may remember of names and attributes: nothing.
const TTL: Duration = Duration::ZERO;
/// What gives a hole in a file back.
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

pub(super) fn attributes(ino: INodeNo, kind: FileType, bytes: u64) -> FileAttr {
    FileAttr {
        ino,
        size: bytes,
        blocks: bytes.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: if kind == FileType::Directory { 0o755 } else { 0o640 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

pub(super) struct FlakyFs(pub Arc<Shared>);

impl FlakyFs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

fn index(ino: INodeNo) -> usize {
    ino.0 as usize - 2
}

const OPENED: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

impl Filesystem for FlakyFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.lock();
        match state.find(name) {
            Some(index) => reply.entry(&TTL, &state.attributes(index), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if ino == INodeNo::ROOT {
            return reply.attr(&TTL, &attributes(ino, FileType::Directory, 0));
        }
        reply.attr(&TTL, &self.lock().attributes(index(ino)));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if ino == INodeNo::ROOT {
            return reply.attr(&TTL, &attributes(ino, FileType::Directory, 0));
        }
        let mut state = self.lock();
        if let Some(bytes) = size {
            state.resize(index(ino), bytes);
        }
        reply.attr(&TTL, &state.attributes(index(ino)));
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.lock();
        match state.find(name) {
            Some(index) => {
                state.files[index].is_there = false;
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.lock();
        let Some(from) = state.find(name) else { return reply.error(Errno::ENOENT) };
        if let Some(replaced) = state.find(new_name) {
            state.files[replaced].is_there = false;
        }
        state.files[from].name = new_name.to_string_lossy().into_owned();
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut state = self.lock();
        let opened = |reply: ReplyOpen| reply.opened(FileHandle(0), OPENED);
        match state.failure_of(Call::Open, Some(index(ino)), None) {
            Some(Failure::NoSpace) => reply.error(Errno::ENOSPC),
            Some(Failure::Hang) => state.held.push(Box::new(move |_| opened(reply))),
            Some(Failure::Io | Failure::Short) => reply.error(Errno::EIO),
            None => opened(reply),
        }
    }

    fn create(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let mut state = self.lock();
        let failure = state.failure_of(Call::Open, None, None);
        let name = name.to_string_lossy().into_owned();
        let created = |state: &mut State, reply: ReplyCreate| {
            let index = state.find(OsStr::new(&name)).unwrap_or_else(|| {
                state.files.push(DiskFile::new(name, Vec::new()));
                state.files.len() - 1
            });
            reply.created(&TTL, &state.attributes(index), Generation(0), FileHandle(0), OPENED);
        };
        match failure {
            Some(Failure::NoSpace) => reply.error(Errno::ENOSPC),
            Some(Failure::Hang) => state.held.push(Box::new(move |state| created(state, reply))),
            Some(Failure::Io | Failure::Short) => reply.error(Errno::EIO),
            None => created(&mut state, reply),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.lock();
        let file = index(ino);
        let failure = state.failure_of(Call::Read, Some(file), None);
        let part = move |state: &State| {
            let bytes = state.files[file].content.len();
            let start = (offset as usize).min(bytes);
            start..(start + size as usize).min(bytes)
        };
        let range = part(&state);
        match failure {
            Some(Failure::Io | Failure::NoSpace) => reply.error(Errno::EIO),
            Some(Failure::Short) => reply.data(&state.files[file].content[range.start..range.start + range.len() / 2]),
            Some(Failure::Hang) => state.held.push(Box::new(move |state| {
                let range = part(state);
                reply.data(&state.files[file].content[range]);
            })),
            None => reply.data(&state.files[file].content[range]),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.lock();
        let file = index(ino);
        let content = Content::of(data);
        let failure = state.failure_of(Call::Write, Some(file), Some(content));
        if content != Content::Batch {
            state.files[file].last_written = content;
        }
        let is_durable = flags.0 & libc::O_DSYNC != 0;
        let op = || Op::Write { file: file as u32, offset, data: data.to_vec(), is_durable };
        let what = What::Write { file, offset, data: data.to_vec(), reply, failure };
        state.submit(op, what, is_durable, failure);
        drop(state);
        self.0.changed.notify_all();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.lock();
        let failure = state.failure_of(Call::Flush, Some(index(ino)), None);
        let file = index(ino) as u32;
        state.submit(|| Op::Flush { file }, What::Flush { reply, failure }, true, failure);
        drop(state);
        self.0.changed.notify_all();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.lock();
        for (i, file) in state.files.iter().enumerate().skip(offset as usize).filter(|(_, file)| file.is_there) {
            if reply.add(INodeNo(i as u64 + 2), i as u64 + 1, FileType::RegularFile, &file.name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(DISK_BLOCKS, DISK_BLOCKS, DISK_BLOCKS, 1 << 20, 1 << 20, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut state = self.lock();
        let file = index(ino);
        if mode == PUNCH {
            state.free(file, offset, length);
            return reply.ok();
        }
        let failure = state.failure_of(Call::Grow, Some(file), None);
        let grow = move |state: &mut State, reply: ReplyEmpty| {
            let bytes = (offset + length).max(state.files[file].content.len() as u64);
            state.resize(file, bytes);
            reply.ok();
        };
        match failure {
            _ if mode != 0 => reply.error(Errno::EOPNOTSUPP),
            Some(Failure::NoSpace) => reply.error(Errno::ENOSPC),
            Some(Failure::Hang) => state.held.push(Box::new(move |state| grow(state, reply))),
            Some(Failure::Io | Failure::Short) => reply.error(Errno::EIO),
            None => grow(&mut state, reply),
        }
    }
}
