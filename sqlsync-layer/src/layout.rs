//! How a SQLite database's pages are laid out for readers when a volume is compacted.
//!
//! Two groups of readers decide. Every query walks from a b-tree's root down: so all *interior* pages
//! of all b-trees come first, in one bundle that is fetched at open. A scan reads a b-tree's leaves in
//! key order: so each b-tree's leaves follow one another in that order, whatever their page numbers
//! are. Overflow pages, free pages and whatever no b-tree leads to come last, by number.
//!
//! Only interior pages are read, and one page of each level below them: a b-tree's leaves are all at
//! the same depth. Source: <https://sqlite.org/fileformat2.html#b_tree_pages>.
//!
//! A page that is not at hand is asked for and counts as a leaf until the driver has fetched it and
//! asks again: as many rounds as the deepest b-tree has levels, each one batch of fetches.
//!
//! Invariants: every page from 1 to the page count is in exactly one group; what the pages say is not
//! trusted: a database with cycles or wild pointers gets some order, no error and no endless walk. The
//! order never changes what a reader sees, only what it costs.

use std::collections::BTreeSet;

use bytes::Bytes;
use graft::PageIdx;
use graft::compact::{ByNumber, Group, Layout, Source};

/// The layout of a SQLite database. Finds the b-trees itself, through the schema's.
#[derive(Debug, Default, Clone, Copy)]
pub struct SqliteLayout;

/// [`SqliteLayout`] where page 1 begins as a SQLite database does, [`ByNumber`] for anything else.
#[derive(Debug, Default, Clone, Copy)]
pub struct ByContent;

/// How every SQLite database begins.
const MAGIC: &[u8] = b"SQLite format 3\0";

impl Layout for ByContent {
    fn groups(&self, source: &mut dyn Source) -> Vec<Group> {
        // Not at hand: whoever asks fetches it and asks again.
        let first = PageIdx::new(1).filter(|_| source.pages() > 0).and_then(|first| source.page(first));
        match first {
            Some(page) if page.starts_with(MAGIC) => SqliteLayout.groups(source),
            Some(_) | None => ByNumber.groups(source),
        }
    }
}

/// A b-tree page's kind and, of an interior page, its children in key order.
enum Page {
    Leaf,
    Interior(Vec<u32>),
    Other,
}

impl Layout for SqliteLayout {
    fn groups(&self, source: &mut dyn Source) -> Vec<Group> {
        let pages = source.pages();
        let mut seen = Seen::new(pages);
        let mut bundle: Vec<PageIdx> = Vec::new();
        let mut trees: Vec<Group> = Vec::new();
        let Some(first) = PageIdx::new(1).filter(|first| first.get() <= pages) else {
            return Vec::new();
        };
        // The schema's own b-tree leads to the others. Page 1 is read by everything.
        let schema = walk(first, source, &mut seen);
        bundle.push(first);
        bundle.extend(schema.interior.iter().copied().filter(|page| *page != first));
        let schema_leaves: Vec<PageIdx> = schema.leaves.into_iter().filter(|page| *page != first).collect();
        let mut roots = BTreeSet::new();
        for page in schema_leaves.iter().chain([&first]) {
            roots.extend(source.page(*page).map(|bytes| roots_in(&bytes, *page)).unwrap_or_default());
        }
        // The schema is read by every connection, so its leaves are in the bundle too.
        bundle.extend(schema_leaves);
        for root in roots {
            let Some(root) = PageIdx::new(root).filter(|root| seen.is_new(*root)) else { continue };
            let tree = walk(root, source, &mut seen);
            bundle.extend(tree.interior);
            if !tree.leaves.is_empty() {
                trees.push(Group { pages: tree.leaves, hot: false });
            }
        }
        let rest: Vec<PageIdx> = (1..=pages).filter_map(PageIdx::new).filter(|p| seen.is_new(*p)).collect();
        let mut groups = vec![Group { pages: bundle, hot: true }];
        groups.append(&mut trees);
        if !rest.is_empty() {
            groups.push(Group { pages: rest, hot: false });
        }
        groups
    }
}

/// The pages that a group has already.
struct Seen(Vec<bool>);

impl Seen {
    fn new(pages: u32) -> Seen {
        Seen(vec![false; pages as usize + 1])
    }
    /// Whether the page exists and no group has it.
    fn is_new(&self, page: PageIdx) -> bool {
        self.0.get(page.get() as usize) == Some(&false)
    }
    /// Whether the page was new; it is not from now on.
    fn take(&mut self, page: PageIdx) -> bool {
        self.is_new(page) && !std::mem::replace(&mut self.0[page.get() as usize], true)
    }
}

#[derive(Default)]
struct Tree {
    interior: Vec<PageIdx>,
    leaves: Vec<PageIdx>,
}

/// One b-tree: its interior pages level by level, its leaves in key order.
fn walk(root: PageIdx, source: &mut dyn Source, seen: &mut Seen) -> Tree {
    let mut tree = Tree::default();
    if !seen.take(root) {
        return tree;
    }
    let mut level = match parse(source.page(root), root) {
        Page::Interior(children) => {
            tree.interior.push(root);
            children
        }
        Page::Leaf | Page::Other => {
            tree.leaves.push(root);
            return tree;
        }
    };
    loop {
        let pages: Vec<PageIdx> =
            level.into_iter().filter_map(PageIdx::new).filter(|page| seen.take(*page)).collect();
        let Some(first) = pages.first() else { return tree };
        // A b-tree is balanced: what one page of a level is, all are.
        if !matches!(parse(source.page(*first), *first), Page::Interior(_)) {
            tree.leaves.extend(pages);
            return tree;
        }
        level = Vec::new();
        for page in pages {
            tree.interior.push(page);
            if let Page::Interior(children) = parse(source.page(page), page) {
                level.extend(children);
            }
        }
    }
}

/// Where a page's b-tree header begins: after the database header on page 1.
fn header_at(idx: PageIdx) -> usize {
    if idx.get() == 1 { 100 } else { 0 }
}

fn u16_at(page: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(page.get(at..at + 2)?.try_into().ok()?)))
}

fn u32_at(page: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(page.get(at..at + 4)?.try_into().ok()?))
}

fn parse(page: Option<Bytes>, idx: PageIdx) -> Page {
    let Some(page) = &page else { return Page::Other };
    let at = header_at(idx);
    match page.get(at) {
        Some(2 | 5) => {
            let cells = u16_at(page, at + 3).unwrap_or(0);
            let children = (0..cells)
                .filter_map(|cell| u32_at(page, u16_at(page, at + 12 + 2 * cell)?))
                .chain(u32_at(page, at + 8));
            Page::Interior(children.collect())
        }
        Some(10 | 13) => Page::Leaf,
        _ => Page::Other,
    }
}

/// The root pages that a leaf of the schema's table names: its rows' fourth column.
fn roots_in(page: &Bytes, idx: PageIdx) -> Vec<u32> {
    let at = header_at(idx);
    if page.get(at) != Some(&13) {
        return Vec::new();
    }
    let cells = u16_at(page, at + 3).unwrap_or(0);
    (0..cells).filter_map(|cell| root_of(page, u16_at(page, at + 8 + 2 * cell)?)).collect()
}

/// The root page in one row of the schema. The row's start is always on this page: type, name, table
/// and root page come before the SQL text, unless a name is so long that they spill, and then the
/// b-tree is laid out with the rest.
fn root_of(page: &[u8], cell: usize) -> Option<u32> {
    let (_, at) = varint(page, cell)?;
    let (_, record) = varint(page, at)?;
    let (header, mut at) = varint(page, record)?;
    let mut body = record.checked_add(usize::try_from(header).ok()?)?;
    for column in 0..4 {
        let (kind, next) = varint(page, at)?;
        at = next;
        if column < 3 {
            body = body.checked_add(column_bytes(kind)?)?;
            continue;
        }
        let bytes = page.get(body..body.checked_add(column_bytes(kind)?)?)?;
        return match kind {
            9 => Some(1),
            1..=6 => u32::try_from(bytes.iter().fold(0u64, |n, b| n << 8 | u64::from(*b))).ok(),
            _ => None,
        };
    }
    None
}

fn column_bytes(kind: u64) -> Option<usize> {
    Some(match kind {
        0 | 8 | 9 => 0,
        1..=4 => kind as usize,
        5 => 6,
        6 | 7 => 8,
        10 | 11 => return None,
        _ => usize::try_from((kind - 12) / 2).ok()?,
    })
}

/// A SQLite varint and where it ends.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for i in 0..9 {
        let byte = *bytes.get(at.checked_add(i)?)?;
        if i == 8 {
            return Some((value << 8 | u64::from(byte), at + 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + i + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests;
