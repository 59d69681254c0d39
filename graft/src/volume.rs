//! One replica of one volume: what is durable, local commits on top, and cached pages.
//!
//! ```text
//!   remote log   1 ─ 2 ─ … ─ n            durable, base of this replica
//!   local                      └ a ─ b ─ c = tip
//! ```
//!
//! A *local commit* is atomic and, where the replica has a store, on disk before it is acknowledged.
//! A push rolls one or more of them up into one remote commit: [`Volume::seal`] makes its bytes and
//! remembers it as *pending* before anything is sent, [`crate::publish::publish`] sends it,
//! [`Volume::confirm`] moves the base forward. A rejected push leaves everything in place until the
//! caller [`reset`](Volume::reset)s.
//!
//! A read that misses answers [`ReadError::Fault`] with the pages to fetch; it does no I/O on the
//! remote itself. [`crate::fetch`] does.
//!
//! Three locks, taken in this order: *sealing* (one push is prepared or settled at a time), *writer*
//! (one change of base, local commits and pending push at a time) and *state*. State is locked to read it
//! or to put a change in place that is made and stored already. So a reader waits for no disk and no
//! compressor, and a local commit waits for other changes' writes, not for the compression of a push.
//!
//! Invariants: nothing changes state but who holds the writer's lock; no I/O under the lock on state,
//! nor compression under the writer's; the tip is the base plus every local commit in order; only durable pages are cached,
//! under the LSN that wrote them; a pending push is forgotten only when the log shows how it ended;
//! confirming a push does not change the tip's content nor its version.

pub(crate) mod cache;
mod persist;
mod stack;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use self::cache::PageCache;
use self::persist::{Kept, Unfinished};
pub use self::stack::{Placed, ReplaceError};
use crate::catalog::{self, CatalogError};
use crate::checkpoint::Policy;
use crate::format::chunk::Lineage;
use crate::format::commit::Head;
use crate::gc::bottom::{Confirmed, Moment};
use crate::history::{self, History, HistoryError, Standing, Start};
use crate::ids::{ChainHash, CommitId, Lsn, PageIdx, PageSize, VolumeId};
use crate::page_set::PageSet;
use crate::publish::{Draft, Prepared, PublishError, Published, prepare, publish};
use crate::pull::{PullError, Pulled};
use crate::remote::Remote;
use crate::snapshot::{Location, Snapshot, graft};
use crate::store::claim::Claim;
use crate::store::{Batch, Durability, SharedStore, StoreError};
use crate::time::{self, At, AtError};

/// Pages of a confirmed push that go into the cache at once.
const CACHED_AT_ONCE: usize = 256;

/// How a replica keeps its state.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where cached pages and metadata are kept across restarts; nowhere where `None`.
    pub store: Option<SharedStore>,
    /// Whether local commits go to the store before they are acknowledged, and how. `None` keeps
    /// them in memory alone: right for a coordinator, whose clients resend what is not durable.
    pub locals: Option<Durability>,
    /// Bytes of pages kept in memory: a strict bound, but for one page at least.
    pub cache_bytes: usize,
    /// Bytes that cached pages take on disk, where there is a store: a strict bound on their file.
    pub disk_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { store: None, locals: Some(Durability::Sync), cache_bytes: 64 << 20, disk_bytes: 16 << 30 }
    }
}

/// A local commit: one atomic change on top of the replica's tip. A clone shares pages and payload.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalCommit {
    /// Its number in this replica: its place in the order.
    pub number: u64,
    /// The page count before it.
    pub pages_before: u32,
    /// The page count after it.
    pub pages_after: u32,
    /// The pages it wrote, none beyond `pages_after`.
    pub changes: Arc<BTreeMap<PageIdx, Bytes>>,
    /// What the layer above stored with it.
    pub payload: Bytes,
}

impl LocalCommit {
    /// The pages that read differently after it: those written and those cut off.
    pub fn graft(&self) -> PageSet {
        graft(self.changes.keys().copied().collect(), self.pages_before, self.pages_after)
    }
}

/// A change to be committed locally.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Pages written, each one page long and within `pages`.
    pub changes: BTreeMap<PageIdx, Bytes>,
    /// The page count after it.
    pub pages: u32,
    /// Opaque.
    pub payload: Bytes,
}

/// Why a page was not read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// These pages are not here. Fetch them, then read again.
    #[error("{} pages must be fetched", .0.len())]
    Fault(PageSet),
    /// The page is beyond the snapshot.
    #[error("{page:?} is past the end of a snapshot of {pages} pages")]
    PastEnd {
        /// The page asked for.
        page: PageIdx,
        /// The snapshot's page count.
        pages: u32,
    },
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a local commit was not made. Nothing has changed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The tip is not the snapshot that the change was made on.
    #[error("the volume moved on since this transaction began; begin it again")]
    Stale,
    /// It is a view of the past.
    #[error("this is volume {volume} as it was at lsn {lsn}, which cannot be changed; fork it there")]
    ReadOnly {
        /// Which volume.
        volume: VolumeId,
        /// Where.
        lsn: Lsn,
    },
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a replica could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Its metadata could not be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Its log could not be read.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The local store holds local commits that were never pushed, and this replica is opened to
    /// keep none ([`Options::locals`] is `None`).
    #[error(
        "the local store holds {locals} unpushed local commits of volume {volume}; push them with the program that made them, or give another data directory"
    )]
    Unpushed {
        /// Which volume.
        volume: VolumeId,
        /// How many.
        locals: usize,
    },
    /// What the local store holds of it is damaged.
    #[error(
        "the local store's record of volume {volume} is damaged: {reason}; remove the data directory if it holds no unpushed work"
    )]
    Local {
        /// Which volume.
        volume: VolumeId,
        /// What did not hold.
        reason: String,
    },
}

impl From<HistoryError> for OpenError {
    fn from(error: HistoryError) -> OpenError {
        match error {
            HistoryError::Catalog(error) => error.into(),
            HistoryError::Pull(error) => error.into(),
        }
    }
}

/// Where a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The newest durable commit known.
    pub lsn: Lsn,
    /// Local commits that the remote does not have.
    pub ahead: usize,
    /// Whether a push was sent whose outcome is not known yet.
    pub pending: bool,
    /// The tip's page count.
    pub pages: u32,
}

/// A replica, and the commits it stands on.
#[derive(Debug)]
pub struct Opened {
    /// The replica.
    pub volume: Volume,
    /// Where its history begins: the layer above finds in its state what it remembered there.
    pub start: Start,
    /// Every durable commit since that it knows, oldest first: the layer above goes on from their
    /// payloads.
    pub heads: Vec<Head>,
}

struct State {
    base: Snapshot,
    tip: Snapshot,
    /// The base's [`Snapshot::log_bytes`] when the newest checkpoint known was made.
    checkpointed_bytes: u64,
    locals: Vec<Arc<LocalCommit>>,
    pending: Option<Arc<Prepared>>,
    /// The last version given to a snapshot, and the last number to a local commit.
    versions: u64,
    numbers: u64,
}

impl State {
    fn next_version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }
}

/// The tip from a base and the local commits on it, under `version`. Copies no more of the page table than
/// all of them touch.
fn stack(base: &Snapshot, locals: &[Arc<LocalCommit>], version: u64) -> Snapshot {
    base.with_locals(locals.iter().map(|local| &**local), version)
}

/// A replica of one volume. Shared by every connection to it in this process.
pub struct Volume {
    id: VolumeId,
    page_size: PageSize,
    options: Options,
    /// A view of the past: it neither commits nor moves.
    fixed: bool,
    /// One [`aside`](Volume::aside) another, whose store says where that one stands.
    is_aside: bool,
    /// What a push leaves in the store; held while one is prepared or settled.
    sealing: Mutex<Kept>,
    /// Held while base, local commits or pending push are changed.
    writer: Mutex<Unfinished>,
    state: Mutex<State>,
    /// Shared with the volumes [`aside`](Volume::aside) of this one.
    cache: Arc<PageCache>,
    /// When the log's head was last seen.
    confirmed: Confirmed,
    /// What pulls that failed have read.
    read_before: history::ReadBefore,
    /// That no other replica is this volume's in the store; one aside has none, and writes nothing there.
    _claim: Option<Claim>,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Volume({}, {:?})", self.id, self.status())
    }
}

impl Volume {
    /// Opens a replica and pulls. Costs what [`history`] says where the local store holds nothing of
    /// it; else the metadata and a pull.
    pub async fn open(remote: &dyn Remote, id: VolumeId, options: Options) -> Result<Opened, OpenError> {
        if !persist::holds(options.store.as_deref(), id)? {
            let looked = Moment::now();
            let History { meta, start, heads, early } = history::read(remote, id, None).await?;
            let mut opened = Volume::load(id, meta.page_size, options)?;
            let pulled = Pulled { from: Lsn::ZERO, jump: Some(Box::new(start.clone())), heads };
            opened.heads = pulled.heads.clone();
            opened.start = start;
            opened.volume.absorb(pulled)?;
            opened.volume.keep_early(&early);
            opened.volume.confirmed.note(opened.volume.base().lsn(), looked);
            return Ok(opened);
        }
        let meta = catalog::meta(remote, id).await?;
        let mut opened = Volume::load(id, meta.page_size, options)?;
        if opened.volume.status().ahead == 0 {
            let pulled = opened.volume.pull(remote).await?;
            match &pulled.jump {
                Some(start) => {
                    opened.start = (**start).clone();
                    opened.heads = pulled.heads.clone();
                }
                None => opened.heads.extend(pulled.heads.iter().cloned()),
            }
            opened.volume.absorb(pulled)?;
        }
        Ok(opened)
    }

    /// Opens the volume as it was at `at`: to read, not to change. It never moves, whatever is pulled.
    /// Costs what [`crate::time::find`] says, and then what [`history`] says.
    ///
    /// # Errors
    ///
    /// [`AtError`]; [`PullError::Expired`] in it where the volume no longer retains that state.
    pub async fn open_at(
        remote: &dyn Remote,
        id: VolumeId,
        at: At,
        cache_bytes: usize,
    ) -> Result<Opened, AtError> {
        let History { meta, start, heads, early } = time::read_at(remote, id, at).await?;
        let options = Options { store: None, locals: None, cache_bytes, ..Options::default() };
        let mut volume = Volume::new(id, meta.page_size, options)?;
        let pulled = Pulled { from: Lsn::ZERO, jump: Some(Box::new(start.clone())), heads: heads.clone() };
        volume.move_to(pulled)?;
        volume.keep_early(&early);
        volume.fixed = true;
        Ok(Opened { volume, start, heads })
    }

    /// Opens a replica from what the local store holds of it, without the remote.
    pub fn load(id: VolumeId, page_size: PageSize, options: Options) -> Result<Opened, OpenError> {
        let volume = Volume::new(id, page_size, options)?;
        let (start, heads) = volume.restore()?;
        volume.cache.inherit(volume.options.store.as_ref(), &start.volumes);
        Ok(Opened { volume, start, heads })
    }

    fn new(id: VolumeId, page_size: PageSize, options: Options) -> Result<Volume, StoreError> {
        let empty = Snapshot::empty(page_size, Lineage::of(id));
        let state = State {
            base: empty.clone(),
            tip: empty,
            checkpointed_bytes: 0,
            locals: Vec::new(),
            pending: None,
            versions: 0,
            numbers: 0,
        };
        let claim = options.store.clone().map(|store| Claim::new(store, id)).transpose()?;
        let cache = Arc::new(PageCache::open(id, page_size, &options)?);
        Ok(Volume {
            id,
            page_size,
            options,
            fixed: false,
            is_aside: false,
            sealing: Mutex::default(),
            writer: Mutex::default(),
            state: Mutex::new(state),
            cache,
            confirmed: Confirmed::default(),
            read_before: history::ReadBefore::default(),
            _claim: claim,
        })
    }

    /// Its identity.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Bytes of pages kept in memory.
    pub fn cache_bytes(&self) -> usize {
        self.options.cache_bytes
    }

    /// Bytes in each page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The newest state: what is durable and every local commit.
    pub fn tip(&self) -> Snapshot {
        self.state.lock().tip.clone()
    }

    /// The newest durable state.
    pub fn base(&self) -> Snapshot {
        self.state.lock().base.clone()
    }

    /// The empty volume, where the log has everything since: `None` for a fork.
    pub(crate) fn origin(&self) -> Option<Snapshot> {
        let volumes = self.base().volumes().clone();
        (volumes.volumes().len() == 1).then(|| Snapshot::empty(self.page_size, volumes))
    }

    /// Where this replica stands.
    pub fn status(&self) -> Status {
        let state = self.state.lock();
        Status {
            lsn: state.base.lsn(),
            ahead: state.locals.len(),
            pending: state.pending.is_some(),
            pages: state.tip.pages(),
        }
    }

    /// The local commits that the remote does not have, oldest first.
    pub fn locals(&self) -> Vec<LocalCommit> {
        let locals = self.state.lock().locals.clone();
        locals.iter().map(|local| LocalCommit::clone(local)).collect()
    }

    /// The newest local commit that the remote does not have.
    pub fn last_local(&self) -> Option<LocalCommit> {
        let last = self.state.lock().locals.last().cloned();
        last.map(Arc::unwrap_or_clone)
    }

    /// Reads page `page` as of `snapshot`. A page that no commit has written reads as zeroes.
    pub fn read(&self, snapshot: &Snapshot, page: PageIdx) -> Result<Bytes, ReadError> {
        if page.get() > snapshot.pages() {
            return Err(ReadError::PastEnd { page, pages: snapshot.pages() });
        }
        loop {
            return match snapshot.location(page) {
                Location::Zero => Ok(Bytes::from(vec![0; self.page_size.bytes()])),
                Location::Local(bytes) => Ok(bytes.clone()),
                Location::Frame(_, slot) => match self.cache.get((page, slot.lsn), slot.hash)? {
                    Some(bytes) => Ok(bytes),
                    None => Err(ReadError::Fault(PageSet::from_iter([page]))),
                },
                // What the local store has needs no fetch.
                Location::Unknown(chunk) if self.load_stored(snapshot, chunk)? => continue,
                Location::Unknown(_) => match self.reseeded(snapshot) {
                    Some(now) => self.read(&now, page),
                    None => Err(ReadError::Fault(PageSet::from_iter([page]))),
                },
            };
        }
    }

    /// The same state as `snapshot`, where the volume has it on another checkpoint by now: parts of the
    /// page table that `snapshot` never read may have been collected ([`Volume::adopt`]).
    pub(crate) fn reseeded(&self, snapshot: &Snapshot) -> Option<Snapshot> {
        let state = self.state.lock();
        let seq = |of: &Snapshot| of.checkpoint().map(|root| (root.volume, root.seq));
        let named = |of: &Snapshot| (of.lsn(), of.version(), of.lineage());
        [&state.tip, &state.base]
            .into_iter()
            .find(|now| named(now) == named(snapshot) && seq(now) != seq(snapshot))
            .cloned()
    }

    /// The pages of `pages` that a read of `snapshot` would fault on. No I/O.
    pub fn missing(&self, snapshot: &Snapshot, pages: &PageSet) -> Result<PageSet, StoreError> {
        Ok(self.cache.missing(snapshot, pages))
    }

    /// Commits a change on top of the tip, if the tip is still the snapshot it was made on.
    pub fn commit(&self, on: &Snapshot, change: Change) -> Result<Snapshot, CommitError> {
        self.commit_with(on, change, Batch::default())
    }

    /// Rolls the first `locals` local commits up into one commit, and records it as pending. `None`
    /// where there is none to roll up or one is pending already ([`Volume::pending`] answers it), and
    /// where those local commits were dropped or replaced meanwhile.
    ///
    /// Readers and local commits go on while it compresses. Where local commits are kept in a store,
    /// segments go there as they are made, so that it takes about 32 MiB of memory, whatever is pushed.
    ///
    /// `payload` is what the commit carries; `id` is fresh and random; `now_ms` is the clock.
    ///
    /// Which local commits are the first is decided here: right for whoever alone changes this replica.
    /// Where others do, too, [`seal_seen`](Volume::seal_seen).
    pub fn seal(
        &self,
        locals: usize,
        payload: Bytes,
        id: CommitId,
        now_ms: i64,
    ) -> Result<Option<Arc<Prepared>>, StoreError> {
        self.seal_first(|_| locals, payload, id, now_ms)
    }

    /// As [`seal`](Volume::seal), of the local commits that `payload` was made from: `None` also where
    /// they are not the first ones any more.
    pub fn seal_seen(
        &self,
        seen: &[LocalCommit],
        payload: Bytes,
        id: CommitId,
        now_ms: i64,
    ) -> Result<Option<Arc<Prepared>>, StoreError> {
        let first = |locals: &[Arc<LocalCommit>]| {
            // One that was replaced has its number, and other pages or another payload.
            let same = |(now, then): (&Arc<LocalCommit>, &LocalCommit)| {
                now.number == then.number
                    && Arc::ptr_eq(&now.changes, &then.changes)
                    && now.payload == then.payload
            };
            let there = locals.len() >= seen.len() && locals.iter().zip(seen).all(same);
            if there { seen.len() } else { 0 }
        };
        self.seal_first(first, payload, id, now_ms)
    }

    /// Seals the local commits before the index that `first` answers.
    fn seal_first(
        &self,
        first: impl Fn(&[Arc<LocalCommit>]) -> usize,
        payload: Bytes,
        id: CommitId,
        now_ms: i64,
    ) -> Result<Option<Arc<Prepared>>, StoreError> {
        let mut kept = self.sealing.lock();
        let (base, locals) = {
            let state = self.state.lock();
            if state.pending.is_some() {
                return Ok(None);
            }
            let first = first(&state.locals).min(state.locals.len());
            (state.base.clone(), state.locals[..first].to_vec())
        };
        let sealed = self.seal_on(&mut kept, &base, &locals, payload, id, now_ms);
        if !matches!(sealed, Ok(Some(_)))
            && kept.any()
            && let Err(left) = self.remove_pending(&mut kept, None)
        {
            // The next seal or the next opening does.
            tracing::debug!(volume = %self.id, error = %left, "parts of a push are left for later");
        }
        sealed
    }

    fn seal_on(
        &self,
        kept: &mut Kept,
        base: &Snapshot,
        locals: &[Arc<LocalCommit>],
        payload: Bytes,
        id: CommitId,
        now_ms: i64,
    ) -> Result<Option<Arc<Prepared>>, StoreError> {
        let Some(last) = locals.last() else { return Ok(None) };
        let changes = self.roll_up(base, locals);
        let draft = draft_on(base, self.id, last.pages_after, id, now_ms, payload, locals.len());
        let mut prepared = match self.local_store() {
            None => prepare(draft, &changes.into_iter().collect::<Vec<_>>()),
            Some(_) => self.prepare_stored(kept, draft, changes)?,
        };
        let _writer = self.writer.lock();
        let same = {
            let state = self.state.lock();
            state.base.version() == base.version()
                && state.locals.len() >= locals.len()
                && state.locals.iter().zip(locals).all(|(now, then)| now.number == then.number)
        };
        if !same {
            return Ok(None);
        }
        prepared.confirmed = self.confirmed.clone();
        let prepared = Arc::new(prepared);
        self.store_pending(kept, &prepared)?;
        self.state.lock().pending = Some(prepared.clone());
        Ok(Some(prepared))
    }

    /// A commit on top of the base that is made outside this replica, of no local commits: for
    /// [`crate::publish::Builder`]. `None` where there are local commits, which would be lost to it.
    pub fn draft(&self, pages: u32, id: CommitId, now_ms: i64) -> Option<Draft> {
        let state = self.state.lock();
        if !state.locals.is_empty() || state.pending.is_some() {
            return None;
        }
        Some(draft_on(&state.base, self.id, pages, id, now_ms, Bytes::new(), 0))
    }

    /// What `locals` on top of `base` change in all.
    fn roll_up(&self, base: &Snapshot, locals: &[Arc<LocalCommit>]) -> BTreeMap<PageIdx, Bytes> {
        let mut changes: BTreeMap<PageIdx, Bytes> = BTreeMap::new();
        let (mut low, mut pages) = (base.pages(), base.pages());
        for local in locals {
            pages = local.pages_after;
            low = low.min(pages);
            changes.retain(|page, _| page.get() <= pages);
            changes.extend(local.changes.iter().map(|(i, p)| (*i, p.clone())));
        }
        // Cut off and grown again: what the base holds there must not show through.
        for page in (low.saturating_add(1)..=pages.min(base.pages())).filter_map(PageIdx::new) {
            changes.entry(page).or_insert_with(|| Bytes::from(vec![0; self.page_size.bytes()]));
        }
        changes
    }

    /// The push that was sealed and whose outcome is not known yet.
    pub fn pending(&self) -> Option<Arc<Prepared>> {
        self.state.lock().pending.clone()
    }

    /// The pending push is in the log: moves the base onto it. The tip's content stays as it is.
    pub fn confirm(&self, published: Published) -> Result<(), StoreError> {
        let mut kept = self.sealing.lock();
        let _writer = self.writer.lock();
        let (prepared, base, locals) = {
            let state = self.state.lock();
            let Some(prepared) = state.pending.clone().filter(|p| p.head.hash == published.hash) else {
                return Ok(());
            };
            (prepared, state.base.clone(), state.locals.clone())
        };
        let (done, rest) = locals.split_at(prepared.locals);
        let changes = self.roll_up(&base, done);
        self.store_confirmed(&mut kept, &prepared, done)?;
        self.cache.replaced(&base, &prepared.head);
        let lsn = prepared.head.lsn;
        let mut changes = changes.into_iter();
        loop {
            // Copies, because a page may be a view of all that its transaction wrote.
            let own = |(page, bytes): (PageIdx, Bytes)| ((page, lsn), Bytes::copy_from_slice(&bytes));
            let some: Vec<_> = changes.by_ref().take(CACHED_AT_ONCE).map(own).collect();
            if some.is_empty() {
                break;
            }
            self.cache.put_own(some);
        }
        let (tip_version, base_version) = {
            let mut state = self.state.lock();
            let tip = state.tip.version();
            (tip, if rest.is_empty() { tip } else { state.next_version() })
        };
        let base = base.with_commit(&prepared.head, base_version);
        let tip = stack(&base, rest, tip_version);
        let mut state = self.state.lock();
        state.pending = None;
        state.locals.drain(..prepared.locals);
        state.base = base;
        state.tip = tip;
        Ok(())
    }

    /// Drops every local commit and the pending push, and answers them; the tip is the base again.
    /// Only for a push that was [`PublishError::Rejected`], or local commits never sealed.
    pub fn reset(&self) -> Result<Vec<LocalCommit>, StoreError> {
        let mut kept = self.sealing.lock();
        let _writer = self.writer.lock();
        let (locals, pending) = {
            let state = self.state.lock();
            (state.locals.clone(), state.pending.clone())
        };
        self.store_reset(&mut kept, &locals, pending.as_deref())?;
        let mut state = self.state.lock();
        state.pending = None;
        state.locals = Vec::new();
        if !locals.is_empty() {
            let version = state.next_version();
            state.base = state.base.after_reset(version);
            state.tip = state.base.clone();
        }
        drop(state);
        Ok(locals.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    /// Reads what others committed since the base: the newest key and one prefix for each commit, or
    /// a newer checkpoint and the commits since. Changes nothing.
    pub async fn pull(&self, remote: &dyn Remote) -> Result<Pulled, PullError> {
        let (base, looked) = (self.base(), Moment::now());
        let standing = Standing { lsn: base.lsn(), hash: base.hash(), volumes: base.volumes().clone() };
        let pulled = history::catch_up(remote, &standing, &self.read_before).await?;
        self.confirmed.note(pulled.newest(), looked);
        Ok(pulled)
    }

    /// Where a pull goes on from: the newest durable commit and its hash.
    pub fn head(&self) -> (Lsn, ChainHash) {
        let state = self.state.lock();
        (state.base.lsn(), state.base.hash())
    }

    /// Moves the base onto pulled commits; answers their graft, which after a jump is every page that
    /// may have changed. Commits that this replica has already are passed over, and nothing moves while
    /// there are local commits. On an error nothing has moved.
    pub fn absorb(&self, pulled: Pulled) -> Result<PageSet, StoreError> {
        if self.fixed { Ok(PageSet::new()) } else { self.move_to(pulled) }
    }

    fn move_to(&self, pulled: Pulled) -> Result<PageSet, StoreError> {
        let _writer = self.writer.lock();
        let (before, moved) = {
            let mut state = self.state.lock();
            if !state.locals.is_empty() {
                return Ok(PageSet::new());
            }
            (state.base.clone(), state.follow(pulled, self.page_size))
        };
        self.store_pulled(&before, moved.jump.as_deref(), &moved.heads)?;
        moved.tell(&self.cache);
        let (changed, volumes) = {
            let mut state = self.state.lock();
            let changed = state.advance(moved);
            state.tip = state.base.clone();
            (changed, state.base.volumes().clone())
        };
        self.cache.inherit(self.options.store.as_ref(), &volumes);
        Ok(changed)
    }

    /// The same state, seeded from a newer checkpoint of it: what lies between is no longer kept.
    /// Neither the content nor the version of any snapshot changes. `log_bytes` are the
    /// [`Snapshot::log_bytes`] of the state that the checkpoint is of.
    pub(crate) fn adopt(&self, start: &Start, log_bytes: u64) -> Result<(), StoreError> {
        let Some(root) = &start.checkpoint else { return Ok(()) };
        let _writer = self.writer.lock();
        let (base, locals, tip_version) = {
            let state = self.state.lock();
            (state.base.clone(), state.locals.clone(), state.tip.version())
        };
        let known = base.checkpoint().filter(|known| known.volume == root.volume);
        if root.lsn > base.lsn() || known.is_some_and(|known| known.seq >= root.seq) {
            return Ok(());
        }
        if !self.is_aside {
            self.store_start(&base, start)?;
        }
        let base = base.rebased(root, &start.chunks);
        let tip = stack(&base, &locals, tip_version);
        let mut state = self.state.lock();
        state.base = base;
        state.checkpointed_bytes = log_bytes;
        state.tip = tip;
        Ok(())
    }

    /// Whether `policy` asks for a checkpoint of the base.
    pub fn checkpoint_due(&self, policy: &Policy) -> bool {
        let state = self.state.lock();
        let since = state.base.checkpoint().map_or(Lsn::ZERO, |root| root.lsn);
        let commits = state.base.lsn().0.saturating_sub(since.0);
        let bytes = state.base.log_bytes().saturating_sub(state.checkpointed_bytes);
        commits > 0 && (commits >= policy.commits || bytes >= policy.bytes)
    }
}

/// How a push ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// There was nothing to push.
    Nothing,
    /// Every local commit is in the log, rolled up under this LSN.
    Durable(Lsn),
}

/// Why a push did not end. Local commits are as they were.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// See there. After [`PublishError::Rejected`] the pending push is over; after any other it is
    /// tried again by the next push.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Pushes every local commit of a replica, rolled up into one. A push that was sent earlier and
/// whose outcome is unknown is settled first, with the same bytes. Several may push one replica at a
/// time: each ends when nothing is left to push, whoever pushed it.
///
/// `payload` makes the commit's payload from the local commits'; `id` makes fresh random ids.
pub async fn push(
    remote: &dyn Remote,
    volume: &Volume,
    payload: impl Fn(&[LocalCommit]) -> Bytes,
    mut id: impl FnMut() -> CommitId,
    now_ms: i64,
) -> Result<Pushed, PushError> {
    let mut pushed = Pushed::Nothing;
    loop {
        let prepared = match volume.pending() {
            Some(pending) => pending,
            None => {
                let locals = volume.locals();
                if locals.is_empty() {
                    return Ok(pushed);
                }
                match volume.seal_seen(&locals, payload(&locals), id(), now_ms)? {
                    Some(prepared) => prepared,
                    // Another push was sealed meanwhile, or these local commits are gone.
                    None => continue,
                }
            }
        };
        match publish(remote, &prepared).await {
            Ok(published) => {
                volume.confirm(published)?;
                pushed = Pushed::Durable(published.lsn);
            }
            Err(error) => {
                if matches!(error, PublishError::Rejected { .. }) {
                    volume.forget_pending(&prepared)?;
                }
                let settled = || volume.pending().is_none_or(|now| now.head.hash != prepared.head.hash);
                if matches!(error, PublishError::Local { .. }) && settled() {
                    // Another push of the same commit ended, and its segments went with it.
                    continue;
                }
                return Err(error.into());
            }
        }
    }
}

impl Volume {
    /// `lost` lost its LSN: where it is the pending push, that is over, its local commits stay.
    pub fn forget_pending(&self, lost: &Prepared) -> Result<(), StoreError> {
        let mut kept = self.sealing.lock();
        let _writer = self.writer.lock();
        let pending = self.state.lock().pending.clone();
        let Some(pending) = pending.filter(|pending| pending.head.hash == lost.head.hash) else {
            return Ok(());
        };
        self.remove_pending(&mut kept, Some(&pending))?;
        self.state.lock().pending = None;
        Ok(())
    }
}

/// A commit on top of `base`.
fn draft_on(
    base: &Snapshot,
    volume: VolumeId,
    pages: u32,
    id: CommitId,
    now_ms: i64,
    payload: Bytes,
    locals: usize,
) -> Draft {
    Draft {
        volume,
        lsn: base.lsn().next(),
        id,
        parent: base.hash(),
        parent_time_ms: base.time_ms(),
        checkpoint: base.checkpoint().map_or(Lsn::ZERO, |root| root.lsn),
        now_ms,
        pages,
        payload,
        locals,
    }
}
