//! The control thread: everything of a node that is no shard. Ordinary tokio and axum, one thread.

mod http;
mod metrics;
mod replication;
mod socket;
pub(crate) mod source;
pub(crate) mod view;

pub(crate) use http::router;
pub(crate) use socket::HttpServer;
