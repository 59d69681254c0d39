//! A remote at a distance: every request takes a fixed time longer, as many at once as one likes.
//!
//! For benches, where the network's latency is what is measured against: a directory behind 30 ms
//! costs what a bucket in the same region does, without its noise. The waiting is the caller's, so
//! that this module needs no clock: [`Delayed::new`] takes a function that sleeps,
//! [`Delayed::fixed`] uses tokio's timer (feature `native`).
//!
//! Invariant: a request that counts as `n` in [`super::Counts`] waits `n` times.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;

use super::{Answer, Layer, Listed, Remote, RemoteError, Request, SharedRemote};

/// Makes a future that is ready when the delay of one request is over.
pub type Sleep = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Waits before each request to the remote inside it.
pub struct Delayed {
    inner: SharedRemote,
    sleep: Sleep,
}

impl Delayed {
    /// Waits as `sleep` does.
    pub fn new(inner: SharedRemote, sleep: Sleep) -> Arc<Delayed> {
        Arc::new(Delayed { inner, sleep })
    }

    /// Waits for `delay` by tokio's timer, whose grain is 1 ms. Requests must run in a runtime with
    /// its timer enabled.
    #[cfg(feature = "native")]
    pub fn fixed(inner: SharedRemote, delay: std::time::Duration) -> Arc<Delayed> {
        Delayed::new(inner, Arc::new(move || Box::pin(tokio::time::sleep(delay))))
    }

    async fn wait(&self) {
        (self.sleep)().await;
    }
}

impl fmt::Debug for Delayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Delayed({:?})", self.inner)
    }
}

#[async_trait]
impl Layer for Delayed {
    fn inner(&self) -> &dyn Remote {
        &*self.inner
    }

    fn around<'a, T: Send + 'a>(
        &'a self,
        _request: Request,
        _key: &'a str,
        sent: Answer<'a, T>,
    ) -> Answer<'a, T> {
        Box::pin(async move {
            self.wait().await;
            sent.await
        })
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, RemoteError> {
        self.wait().await;
        let rows = self.inner.list(prefix, after, limit).await?;
        for _ in 1..rows.len().div_ceil(1000) {
            self.wait().await;
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use futures::executor::block_on;

    use super::super::{Counting, MemoryRemote};
    use super::*;

    #[test]
    fn each_request_waits_once_and_a_long_listing_once_for_each_page() {
        let memory = Arc::new(MemoryRemote::new());
        for i in 0..2_500 {
            memory.overwrite(&format!("many/{i:04}"), "x");
        }
        let waits = Arc::new(AtomicU64::new(0));
        let counted = waits.clone();
        let sleep: Sleep = Arc::new(move || {
            counted.fetch_add(1, Relaxed);
            Box::pin(std::future::ready(()))
        });
        let counting = Counting::new(memory);
        let remote: SharedRemote = Delayed::new(counting.clone(), sleep);
        block_on(async {
            remote.create("a/1", "x".into()).await.unwrap();
            remote.put("a/2", "x".into()).await.unwrap();
            let (_, tag) = remote.get_tagged("a/2").await.unwrap();
            remote.update("a/2", "y".into(), &tag).await.unwrap();
            remote.get("a/2").await.unwrap();
            remote.get_range("a/2", 0..1).await.unwrap();
            remote.delete("a/1").await.unwrap();
            remote.list("many/", None, 3_000).await.unwrap();
            remote.list("none/", None, 3_000).await.unwrap();
        });
        assert_eq!((counting.snapshot().requests(), waits.load(Relaxed)), (11, 11));
    }

    #[cfg(feature = "native")]
    #[tokio::test(start_paused = true)]
    async fn requests_at_once_wait_at_once() {
        let remote: SharedRemote =
            Delayed::fixed(Arc::new(MemoryRemote::new()), std::time::Duration::from_millis(30));
        let begun = tokio::time::Instant::now();
        let keys: Vec<String> = (0..100).map(|i| format!("k/{i}")).collect();
        let created = futures::future::join_all(keys.iter().map(|key| remote.create(key, "x".into()))).await;
        assert!(created.iter().all(Result::is_ok));
        let took = begun.elapsed().as_millis();
        assert!((30..35).contains(&took), "{took} ms of virtual time");
    }
}
