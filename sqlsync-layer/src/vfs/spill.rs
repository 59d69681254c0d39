//! What a write transaction has written so far: in memory up to a budget, beyond it in a file.
//!
//! The file has no name: it is unlinked as it is made, so that nothing is left after a crash. At
//! COMMIT it is mapped, and the pages handed on are views of the mapping: publishing a large
//! transaction reads from the file, and holds no second copy in memory. The mapping lives as long as
//! any of those pages does, which is until the commit is durable.
//!
//! Invariants: the file never changes once it is mapped; a page lies either in memory or in the file.
//! On wasm32 there are no files: there a transaction larger than 1 GiB is refused.
#![allow(unsafe_code, reason = "mapping a file")]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use bytes::Bytes;
use graft::PageIdx;

/// What a transaction may write where nothing can be spilled.
#[cfg(target_arch = "wasm32")]
pub(super) const MEMORY_ONLY_BYTES_MAX: usize = 1 << 30;

/// The pages of one transaction.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    memory: BTreeMap<PageIdx, Bytes>,
    memory_bytes: usize,
    file: Option<SpillFile>,
}

#[derive(Debug)]
struct SpillFile {
    file: file::File,
    page_bytes: usize,
    /// Where each page lies, counted in pages.
    slots: BTreeMap<PageIdx, u64>,
    /// Slots given out.
    used: u64,
}

impl Dirty {
    pub(super) fn clear(&mut self) {
        *self = Dirty::default();
    }

    /// Keeps `data` as page `idx`: in memory, or where that would take more than `budget` bytes, in a
    /// file in `dir` (the system's directory for temporary files where `None`).
    pub(super) fn insert(
        &mut self,
        idx: PageIdx,
        data: &[u8],
        budget: usize,
        dir: Option<&Path>,
    ) -> io::Result<()> {
        if let Some(spilled) = &mut self.file
            && let Some(slot) = spilled.slots.get(&idx)
        {
            return spilled.file.write_at(data, slot * spilled.page_bytes as u64);
        }
        if self.memory.contains_key(&idx) || self.memory_bytes + data.len() <= budget {
            if self.memory.insert(idx, Bytes::copy_from_slice(data)).is_none() {
                self.memory_bytes += data.len();
            }
            return Ok(());
        }
        let spilled = match &mut self.file {
            Some(spilled) => spilled,
            None => self.file.insert(SpillFile {
                file: file::File::new(dir)?,
                page_bytes: data.len(),
                slots: BTreeMap::new(),
                used: 0,
            }),
        };
        spilled.file.write_at(data, spilled.used * spilled.page_bytes as u64)?;
        spilled.slots.insert(idx, spilled.used);
        spilled.used += 1;
        Ok(())
    }

    pub(super) fn get(&self, idx: PageIdx) -> io::Result<Option<Bytes>> {
        if let Some(page) = self.memory.get(&idx) {
            return Ok(Some(page.clone()));
        }
        let Some(spilled) = &self.file else { return Ok(None) };
        let Some(slot) = spilled.slots.get(&idx) else { return Ok(None) };
        let mut page = vec![0; spilled.page_bytes];
        spilled.file.read_at(&mut page, slot * spilled.page_bytes as u64)?;
        Ok(Some(page.into()))
    }

    /// Forgets pages beyond `last`.
    pub(super) fn truncate(&mut self, last: u32) {
        self.memory.retain(|idx, page| {
            let kept = idx.get() <= last;
            if !kept {
                self.memory_bytes -= page.len();
            }
            kept
        });
        if let Some(spilled) = &mut self.file {
            spilled.slots.retain(|idx, _| idx.get() <= last);
        }
    }

    /// Every page. Those in the file are views of it, mapped.
    pub(super) fn into_pages(self) -> io::Result<BTreeMap<PageIdx, Bytes>> {
        let mut pages = self.memory;
        if let Some(spilled) = self.file.as_ref().filter(|spilled| !spilled.slots.is_empty()) {
            let mapped = spilled.file.map(spilled.used as usize * spilled.page_bytes)?;
            for (idx, slot) in &spilled.slots {
                let at = *slot as usize * spilled.page_bytes;
                pages.insert(*idx, mapped.slice(at..at + spilled.page_bytes));
            }
        }
        Ok(pages)
    }
}

#[cfg(unix)]
pub(super) mod file {
    use std::io;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    use bytes::Bytes;

    /// A file without a name.
    #[derive(Debug)]
    pub struct File(std::fs::File);

    impl File {
        pub fn new(dir: Option<&Path>) -> io::Result<File> {
            Ok(File(match dir {
                Some(dir) => tempfile::tempfile_in(dir)?,
                None => tempfile::tempfile()?,
            }))
        }

        pub fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
            self.0.write_all_at(data, at)
        }

        pub fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
            self.0.read_exact_at(out, at)
        }

        pub fn set_len(&self, bytes: u64) -> io::Result<()> {
            self.0.set_len(bytes)
        }

        /// Its first `bytes` bytes, which were written and will not change any more.
        pub fn map(&self, bytes: usize) -> io::Result<Bytes> {
            if bytes == 0 {
                return Ok(Bytes::new());
            }
            // SAFETY: a fresh read-only mapping of a file that is at least `bytes` long; the address is the
            // system's to choose, and the mapping keeps the file alive.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    bytes,
                    libc::PROT_READ,
                    libc::MAP_SHARED,
                    self.0.as_raw_fd(),
                    0,
                )
            };
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Bytes::from_owner(Mapped { start: start.cast(), bytes }))
        }
    }

    struct Mapped {
        start: *const u8,
        bytes: usize,
    }

    // SAFETY: the memory is read-only for its whole life, and unmapped by the last owner.
    unsafe impl Send for Mapped {}
    // SAFETY: as above.
    unsafe impl Sync for Mapped {}

    impl AsRef<[u8]> for Mapped {
        fn as_ref(&self) -> &[u8] {
            // SAFETY: `map` made `bytes` readable bytes at `start`, and the file, which nobody else can
            // name, is not written any more.
            unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: exactly what `mmap` answered, unmapped once. It cannot fail for such a range.
            unsafe { libc::munmap(self.start.cast_mut().cast(), self.bytes) };
        }
    }
}

#[cfg(not(unix))]
pub(super) mod file {
    use std::io;
    use std::path::Path;

    use bytes::Bytes;

    /// No file: there is nowhere to spill to.
    #[derive(Debug)]
    pub struct File(std::convert::Infallible);

    impl File {
        pub fn new(_dir: Option<&Path>) -> io::Result<File> {
            Err(io::Error::new(io::ErrorKind::StorageFull, "a transaction larger than its memory budget"))
        }
        pub fn write_at(&self, _data: &[u8], _at: u64) -> io::Result<()> {
            match self.0 {}
        }
        pub fn read_at(&self, _out: &mut [u8], _at: u64) -> io::Result<()> {
            match self.0 {}
        }
        pub fn set_len(&self, _bytes: u64) -> io::Result<()> {
            match self.0 {}
        }
        pub fn map(&self, _bytes: usize) -> io::Result<Bytes> {
            match self.0 {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    /// Whatever lies where: it reads like a map, and the views stay good when all else is gone.
    #[test]
    fn a_spilled_transaction_reads_like_a_map() {
        for seed in 0..40 {
            let mut rng = StdRng::seed_from_u64(seed);
            let budget = rng.random_range(0..20) * 512;
            let (mut model, mut dirty) = (BTreeMap::new(), Dirty::default());
            for step in 0..300 {
                let idx = PageIdx::new(rng.random_range(1..60)).unwrap();
                match rng.random_range(0..10) {
                    0 => {
                        model.retain(|at: &PageIdx, _| at.get() <= idx.get());
                        dirty.truncate(idx.get());
                    }
                    _ => {
                        let page = vec![rng.random::<u8>(); 512];
                        dirty.insert(idx, &page, budget, None).unwrap();
                        model.insert(idx, Bytes::from(page));
                    }
                }
                let asked = PageIdx::new(rng.random_range(1..60)).unwrap();
                assert_eq!(dirty.get(asked).unwrap(), model.get(&asked).cloned(), "seed {seed}, step {step}");
            }
            assert!(dirty.memory_bytes <= budget, "seed {seed}");
            let pages = dirty.into_pages().unwrap();
            assert_eq!(pages, model, "seed {seed}");
        }
    }
}
