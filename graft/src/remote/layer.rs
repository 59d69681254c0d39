//! Remotes in front of another: whatever a layer does not say itself goes through unchanged.
//!
//! A [`Layer`] names the remote behind it and overrides what it changes: one kind of request by its
//! method, or every request alike by [`Layer::around`]. It is a [`Remote`] by that alone.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;

use super::{Listed, Remote, RemoteError, Request, Tag};

/// What a request comes to.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RemoteError>>;

/// A remote in front of another. Methods that are not overridden mean what [`Remote`]'s do, of the remote
/// behind, inside of [`Layer::around`].
#[async_trait]
pub trait Layer: Send + Sync + fmt::Debug {
    /// The remote behind.
    fn inner(&self) -> &dyn Remote;

    /// Carries out a request that no other method overrides: `sent` is the request to the remote behind,
    /// which has not begun and need not. `key` is the key, or the prefix of a listing.
    fn around<'a, T: Send + 'a>(
        &'a self,
        _request: Request,
        _key: &'a str,
        sent: Answer<'a, T>,
    ) -> Answer<'a, T> {
        sent
    }

    /// See [`Remote::get`].
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        self.around(Request::Get, key, self.inner().get(key)).await
    }

    /// See [`Remote::get_range`].
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        self.around(Request::GetRange, key, self.inner().get_range(key, range)).await
    }

    /// See [`Remote::create`].
    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.around(Request::Create, key, self.inner().create(key, body)).await
    }

    /// See [`Remote::put`].
    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        self.around(Request::Put, key, self.inner().put(key, body)).await
    }

    /// See [`Remote::get_tagged`].
    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError> {
        self.around(Request::Get, key, self.inner().get_tagged(key)).await
    }

    /// See [`Remote::update`].
    async fn update(&self, key: &str, body: Bytes, tag: &Tag) -> Result<Tag, RemoteError> {
        self.around(Request::Update, key, self.inner().update(key, body, tag)).await
    }

    /// See [`Remote::list`].
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        self.around(Request::List, prefix, self.inner().list(prefix, after, limit)).await
    }

    /// See [`Remote::delete`].
    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        self.around(Request::Delete, key, self.inner().delete(key)).await
    }

    /// See [`Remote::url`].
    fn url(&self) -> String {
        self.inner().url()
    }

    /// See [`Remote::place`].
    fn place(&self) -> String {
        self.inner().place()
    }
}

#[async_trait]
impl<L: Layer> Remote for L {
    async fn get(&self, key: &str) -> Result<Bytes, RemoteError> {
        Layer::get(self, key).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, RemoteError> {
        Layer::get_range(self, key, range).await
    }
    async fn create(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        Layer::create(self, key, body).await
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), RemoteError> {
        Layer::put(self, key, body).await
    }
    async fn get_tagged(&self, key: &str) -> Result<(Bytes, Tag), RemoteError> {
        Layer::get_tagged(self, key).await
    }
    async fn update(&self, key: &str, body: Bytes, tag: &Tag) -> Result<Tag, RemoteError> {
        Layer::update(self, key, body, tag).await
    }
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        Layer::list(self, prefix, after, limit).await
    }
    async fn delete(&self, key: &str) -> Result<(), RemoteError> {
        Layer::delete(self, key).await
    }
    fn url(&self) -> String {
        Layer::url(self)
    }
    fn place(&self) -> String {
        Layer::place(self)
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use parking_lot::Mutex;

    use super::super::{MemoryRemote, conformance};
    use super::*;

    /// Changes nothing, and writes down what goes through.
    #[derive(Debug, Default)]
    struct Noting {
        behind: MemoryRemote,
        seen: Mutex<Vec<(Request, String)>>,
    }

    impl Layer for Noting {
        fn inner(&self) -> &dyn Remote {
            &self.behind
        }
        fn around<'a, T: Send + 'a>(
            &'a self,
            request: Request,
            key: &'a str,
            sent: Answer<'a, T>,
        ) -> Answer<'a, T> {
            self.seen.lock().push((request, key.into()));
            sent
        }
    }

    #[test]
    fn a_layer_that_changes_nothing_conforms() {
        block_on(conformance::check(&Noting::default(), ""));
    }

    #[test]
    fn every_kind_of_request_goes_around() {
        let noting = Noting::default();
        let remote: &dyn Remote = &noting;
        block_on(async {
            remote.create("a/1", "x".into()).await.unwrap();
            remote.put("a/2", "x".into()).await.unwrap();
            let (_, tag) = remote.get_tagged("a/2").await.unwrap();
            remote.update("a/2", "y".into(), &tag).await.unwrap();
            remote.get("a/2").await.unwrap();
            remote.get_range("a/2", 0..1).await.unwrap();
            remote.delete("a/1").await.unwrap();
            remote.list("a/", None, 10).await.unwrap();
        });
        let kinds: Vec<Request> = noting.seen.lock().iter().map(|(request, _)| *request).collect();
        use Request::{Create, Delete, Get, GetRange, List, Put, Update};
        assert_eq!(kinds, [Create, Put, Get, Update, Get, GetRange, Delete, List]);
        assert_eq!(noting.seen.lock().last().unwrap().1, "a/");
        assert_eq!((remote.url(), remote.place()), (noting.behind.url(), noting.behind.place()));
    }
}
