//! The device mapper, by its ioctls: maps a device over another one, and sends messages to a mapping. Just what the guest
//! needs, without the library and its tools.
//!
//! ```text
//!  request: header 312 bytes │ what the command needs
//!  header:  version 3×4 │ size 4 │ data start 4 │ targets 4 │ open count 4 │ flags 4 │ event 4 │ padding 4 │ device 8
//!           │ name 128 │ uuid 129 │ padding 7
//! ```

use nix::request_code_readwrite;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

const HEADER_BYTES: usize = 312;
const TARGET_BYTES: usize = 40;
const REQUEST_BYTES: usize = 4096;
const NAME_AT: usize = 48;
const NAME_BYTES_MAX: usize = 127;
const DEVICE_AT: usize = 40;
const VERSION: [u32; 3] = [4, 0, 0];
const IOCTL_TYPE: u8 = 0xfd;

/// Commands of the interface.
const CREATE: u8 = 3;
const REMOVE: u8 = 4;
const RESUME: u8 = 6;
const LOAD: u8 = 9;
const MESSAGE: u8 = 14;

/// The control device.
#[derive(Debug)]
pub struct Mapper {
    control: File,
}

struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(name: &str) -> Request {
        assert!(name.len() <= NAME_BYTES_MAX, "{name} is too long a name");
        let mut request = Request { bytes: vec![0; REQUEST_BYTES] };
        for (number, at) in VERSION.into_iter().zip([0, 4, 8]) {
            request.put_u32(at, number);
        }
        request.put_u32(12, REQUEST_BYTES as u32);
        request.put_u32(16, HEADER_BYTES as u32);
        request.put(NAME_AT, name.as_bytes());
        request
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u32(&mut self, at: usize, number: u32) {
        self.put(at, &number.to_le_bytes());
    }
}

impl Mapper {
    /// Opens the control device; the module must be there.
    pub fn open() -> io::Result<Mapper> {
        Ok(Mapper { control: File::options().read(true).write(true).open("/dev/mapper/control")? })
    }

    /// Makes a device of one target and returns its node. `table` is what the target's documentation says.
    pub fn create(&self, name: &str, sectors: u64, target: &str, table: &str) -> io::Result<PathBuf> {
        let made = self.call(CREATE, Request::new(name))?;
        let mut request = Request::new(name);
        request.put_u32(20, 1);
        request.put(HEADER_BYTES + 8, &sectors.to_le_bytes());
        request.put(HEADER_BYTES + 24, target.as_bytes());
        request.put(HEADER_BYTES + TARGET_BYTES, table.as_bytes());
        self.call(LOAD, request)?;
        self.call(RESUME, Request::new(name))?;
        let device: [u8; 8] = made.bytes[DEVICE_AT..DEVICE_AT + 8].try_into().expect("eight bytes");
        Ok(PathBuf::from(format!("/dev/dm-{}", nix::libc::minor(u64::from_le_bytes(device)))))
    }

    /// Tells the target something.
    pub fn message(&self, name: &str, message: &str) -> io::Result<()> {
        let mut request = Request::new(name);
        // After the sector, which counts for targets in tables of several.
        request.put(HEADER_BYTES + 8, message.as_bytes());
        self.call(MESSAGE, request)?;
        Ok(())
    }

    /// Takes a device away; nobody may have it open.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.call(REMOVE, Request::new(name))?;
        Ok(())
    }

    fn call(&self, command: u8, mut request: Request) -> io::Result<Request> {
        let code = request_code_readwrite!(IOCTL_TYPE, command, HEADER_BYTES);
        // SAFETY: the descriptor is open; the kernel reads and writes no more than the size that stands in the request, which
        // is the length of the buffer, and the buffer is borrowed exclusively for the whole call.
        let result = unsafe { nix::libc::ioctl(self.control.as_raw_fd(), code as _, request.bytes.as_mut_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
    }
}
