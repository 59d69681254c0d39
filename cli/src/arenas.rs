//! How many arenas glibc's allocator uses.
//!
//! It gives each thread one of its own, and what one thread allocates and another frees stays with the
//! first one's: while a volume is scanned, tens of megabytes in each arena that hold nothing. Two are enough
//! here: threads copy and decompress pages far longer than they allocate.
#![allow(unsafe_code, reason = "glibc's setting for its allocator")]

/// Bounds them, for the whole process. Nothing where the allocator is not glibc's.
pub fn bound() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers, and may be called at any time. A value that it does not accept
    // changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
