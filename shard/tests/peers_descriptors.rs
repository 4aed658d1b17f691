//! A test of its own process: descriptors are counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(unused_imports)]
mod common;
#[allow(dead_code)]
#[path = "common/links.rs"]
mod links;

use std::time::Instant;

use common::{PATIENCE, descriptors};
use links::{Told, peer, port, start};
use pyralog_core::NodeId;

#[test]
fn a_hundred_reconnects_leak_no_descriptor() {
    let (one, two) = (port(), port());
    let nodes = [(NodeId(1), one.address()), (NodeId(2), two.address())].into();
    let (one, two) = (start(1, 2, one, &nodes, |_| {}), start(2, 2, two, &nodes, |_| {}));
    two[1].want(&[peer(1, 0)]);
    let mut before = 0;
    for round in 0..101 {
        one[0].want(&[peer(2, 1)]);
        one[0].up(peer(2, 1));
        two[1].up(peer(1, 0));
        if round == 0 {
            before = descriptors();
        } else if round == 100 {
            // What the last break left behind goes with the completions of its operations.
            let end = Instant::now() + PATIENCE;
            while descriptors() > before {
                assert!(Instant::now() < end, "{} descriptors, {before} before", descriptors());
                std::thread::yield_now();
            }
            return;
        }
        one[0].want(&[]);
        assert_eq!(one[0].next(), Told::Down(peer(2, 1)));
        assert_eq!(two[1].next(), Told::Down(peer(1, 0)));
    }
}
