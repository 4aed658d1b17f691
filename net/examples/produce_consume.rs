//! Creates a topic, writes to it with outcomes, callbacks and the low-latency path, reads everything back and checks it.
//! Ends with an error unless all of it is there, once and in order.
//!
//!     cargo run --release -p pyralog-net --example produce_consume -- 127.0.0.1:9092

use std::error::Error;
use std::sync::mpsc;
use std::time::Duration;

use pyralog_core::ErrorCode;
use pyralog_net::client::{
    Client, ClientConfig, ClientError, Consumer, ConsumerConfig, DirectConfig, DirectProducer, Producer,
    ProducerConfig, ProducerRecord, StartAt,
};

const TOPIC: &str = "rust-example";
const WAIT: Duration = Duration::from_secs(30);
const OUTCOMES: u64 = 5_000;
const CALLBACKS: u64 = 5_000;
const DIRECT: u64 = 100;
const RECORDS: u64 = OUTCOMES + CALLBACKS + DIRECT;

fn demand(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("this does not hold: {what}")) }
}

fn value(number: u64) -> Vec<u8> {
    format!("record {number}").into_bytes()
}

fn client(addresses: &str) -> Client {
    let addresses: Vec<&str> = addresses.split(',').collect();
    let config =
        ClientConfig { name: "produce_consume.rs".into(), retry_for: WAIT, ..ClientConfig::default() };
    Client::new(&addresses, config)
}

fn create_topic(client: &mut Client) -> Result<(), ClientError> {
    match client.delete_topic(TOPIC) {
        // Of an earlier run, or of none.
        Ok(()) => {}
        Err(error) if error.code() == ErrorCode::UnknownTopicOrPartition => {}
        Err(error) => return Err(error),
    }
    client.create_topic(TOPIC, 1, -1, -1).map(drop)
}

fn main() -> Result<(), Box<dyn Error>> {
    let addresses =
        std::env::args().nth(1).ok_or("give the address of a node, 127.0.0.1:9092 for example")?;
    create_topic(&mut client(&addresses))?;

    let producer = Producer::new(client(&addresses), TOPIC, ProducerConfig::default())?;
    let mut deliveries = Vec::new();
    for number in 0..OUTCOMES {
        deliveries.push(producer.send(ProducerRecord::value(&value(number)))?);
    }
    for (offset, delivery) in (0..).zip(deliveries) {
        demand(delivery.wait()?.offset == offset, "offsets are counted from 0 without gaps")?;
    }
    let (told, outcomes) = mpsc::channel();
    for number in OUTCOMES..OUTCOMES + CALLBACKS {
        let told = told.clone();
        producer.send_with(ProducerRecord::value(&value(number)), move |outcome| drop(told.send(outcome)))?;
    }
    producer.close(WAIT)?;
    drop(told);
    for (offset, outcome) in (OUTCOMES as i64..).zip(outcomes) {
        demand(outcome?.offset == offset, "callbacks come in the order of the log")?;
    }

    let mut direct = DirectProducer::new(client(&addresses), TOPIC, DirectConfig::default())?;
    for number in OUTCOMES + CALLBACKS..RECORDS {
        let placed = direct.send(0, None, Some(&value(number)))?;
        demand(placed.offset == number as i64, "each is there when its call returns")?;
    }

    let config = ConsumerConfig::default();
    let mut consumer = Consumer::new(client(&addresses), TOPIC, 0, StartAt::Earliest, config)?;
    let mut next = 0;
    while next < RECORDS {
        let polled = consumer.poll(WAIT, |record| -> Result<(), Box<dyn Error>> {
            demand(record.offset == next as i64, "every offset comes once")?;
            demand(record.value == Some(&value(next)), "with the value that was sent")?;
            next += 1;
            Ok(())
        })?;
        demand(polled.records > 0, "what was acknowledged can be read")?;
    }
    println!("{next} records written and read back");
    Ok(())
}
