//! Compaction: rewriting pages into dense segments, laid out for readers.

use bytes::Bytes;

use crate::ids::PageIdx;

/// Pages that readers want together, in the order in which they want them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The pages.
    pub pages: Vec<PageIdx>,
    /// Whether nearly every reader wants all of them: they are fetched when the volume is opened.
    pub hot: bool,
}

/// The pages of the snapshot that is laid out.
pub trait Source {
    /// How many pages there are.
    fn pages(&self) -> u32;
    /// A page's bytes; `None` for one that is not at hand. It is fetched, and the layout asked again.
    fn page(&mut self, page: PageIdx) -> Option<Bytes>;
}

/// How pages are grouped. The layer above knows what they hold.
pub trait Layout {
    /// Every page from 1 to `source.pages()`, each in one group.
    fn groups(&self, source: &mut dyn Source) -> Vec<Group>;
}

/// Pages by number: right for what is not a database.
#[derive(Debug, Default, Clone, Copy)]
pub struct ByNumber;

impl Layout for ByNumber {
    fn groups(&self, source: &mut dyn Source) -> Vec<Group> {
        vec![Group { pages: (1..=source.pages()).filter_map(PageIdx::new).collect(), hot: false }]
    }
}
