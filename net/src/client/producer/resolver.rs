//! Who asks the cluster what a producer has to know: where partitions are led, connections, sessions.

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::client::api::Client;
use crate::client::connection::Connection;
use crate::client::error::ClientError;
use crate::client::place::Place;
use crate::message::{InitProducerIdReply, TopicMetadata};

/// A question.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    /// Where the topic's partitions are led by now.
    Topic,
    /// A connection to a shard, in this time.
    Connection(Place, Duration),
    /// A new producer session.
    Session,
}

/// An answer.
#[derive(Debug)]
pub(super) enum Told {
    Topic(Result<TopicMetadata, ClientError>),
    Connection(Place, Result<Box<Connection>, ClientError>),
    Session(Result<InitProducerIdReply, ClientError>),
}

/// Answers questions one after the other.
#[derive(Debug)]
pub(super) enum Resolver {
    /// When they are asked: for a producer whose caller waits anyway.
    AtOnce { client: Box<Client>, topic: String, told: VecDeque<Told> },
    /// In a thread of its own, so that whoever asks goes on with what does not depend on the answer. The thread ends
    /// when this is dropped, after the answer that it is looking for.
    Aside { asks: Sender<Ask>, told: Receiver<Told> },
}

impl Resolver {
    pub(super) fn at_once(client: Client, topic: &str) -> Self {
        Self::AtOnce { client: Box::new(client), topic: topic.to_owned(), told: VecDeque::new() }
    }

    /// A thread that writes a byte to `wake` after each answer.
    pub(super) fn aside(mut client: Client, topic: &str, wake: Arc<UnixStream>) -> Result<Self, ClientError> {
        let (asks, questions) = channel();
        let (answers, told) = channel();
        let topic = topic.to_owned();
        let work = move || {
            for ask in questions {
                if answers.send(answer(&mut client, &topic, ask)).is_err() {
                    return;
                }
                wake_up(&wake);
            }
        };
        let thread = std::thread::Builder::new().name("pyralog-resolver".into()).spawn(work);
        thread.map_err(|error| ClientError::Usage(format!("no thread for the producer: {error}")))?;
        Ok(Self::Aside { asks, told })
    }

    pub(super) fn ask(&mut self, ask: Ask) {
        match self {
            Self::AtOnce { client, topic, told } => told.push_back(answer(client, topic, ask)),
            // The thread lives as long as this.
            Self::Aside { asks, .. } => drop(asks.send(ask)),
        }
    }

    /// Whether an answer is there that nothing else tells of.
    pub(super) fn has_told(&self) -> bool {
        matches!(self, Self::AtOnce { told, .. } if !told.is_empty())
    }

    /// The next answer that is there.
    pub(super) fn told(&mut self) -> Option<Told> {
        match self {
            Self::AtOnce { told, .. } => told.pop_front(),
            Self::Aside { told, .. } => told.try_recv().ok(),
        }
    }
}

/// Wakes whoever watches the other end.
pub(super) fn wake_up(wake: &UnixStream) {
    // Without room, or with nobody there, it needs no waking.
    let _ = (&*wake).write(&[0]);
}

fn answer(client: &mut Client, topic: &str, ask: Ask) -> Told {
    match ask {
        Ask::Topic => Told::Topic(client.topic_afresh(topic)),
        Ask::Connection(place, timeout) => {
            let config = client.config();
            let (timeout, request_timeout) = (timeout.min(config.connect_timeout), config.request_timeout);
            let opened = client.open_within(place, timeout, request_timeout);
            Told::Connection(place, opened.map(Box::new))
        }
        Ask::Session => Told::Session(client.init_producer_id()),
    }
}
