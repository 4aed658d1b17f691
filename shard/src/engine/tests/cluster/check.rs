//! What has to hold of a healed cluster, and how its replicas stand.

use super::*;

impl World {
    /// Tells how a replica stands.
    pub(super) fn describe(&self, id: u32, group: GroupId) {
        let engine = self.nodes[id as usize - 1].engine.as_ref().unwrap();
        let wanted = engine.catalog.as_ref().map(|catalog| (catalog.version, catalog.moves.get(&group)));
        let Some(partition) = engine.find(group).and_then(|index| engine.at(index)) else {
            return println!("node {id} {group}: not here, {wanted:?}");
        };
        let known = match &partition.replica {
            Replica::Raft(replica) => format!(
                "{:?} leader {:?}, replicas {}, newest {}, {:?}",
                replica.raft,
                replica.raft.leader(),
                replica.raft.configuration(),
                replica.newest_configuration(),
                replica.moves
            ),
            other => format!("{other:?}"),
        };
        let (standing, after) = (partition.standing, partition.place_after_seq);
        println!("node {id} {group}: {standing:?} {known}, takes part after {after}, {wanted:?}");
    }

    pub(super) fn converged(&self) -> bool {
        let catalogs: BTreeSet<u64> = self
            .nodes
            .iter()
            .map(|node| node.catalog.as_ref().map_or(0, |catalog| catalog.version))
            .collect();
        let metadata = [GroupId::METADATA];
        catalogs.len() == 1
            && self.ids().all(|id| self.is_settled(id))
            && self.groups.iter().chain(&metadata).all(|group| {
                let state = |id: &u32| self.nodes[*id as usize - 1].engine.as_ref()?.partition(*group);
                let states = self.holders(*group);
                let states = states.iter().filter_map(state);
                let seen: BTreeSet<(i64, i64, u32)> =
                    states.map(|state| (state.high_watermark, state.log_end, state.leader)).collect();
                let elsewhere = |id: &u32| !self.may_hold(*id, *group);
                let has_left = |id: u32| state(&id).is_none() && !self.has_files_of(id, *group);
                self.leader(*group).is_some()
                    && seen.len() == 1
                    && seen.iter().all(|(mark, end, _)| mark == end)
                    && self.ids().filter(elsewhere).all(has_left)
            })
            && self
                .newest()
                .is_some_and(|newest| newest.moves.is_empty() && newest.nodes.len() == self.nodes.len())
    }

    /// How many replicas a group has.
    fn copies(&self, group: GroupId) -> usize {
        self.newest().map_or(0, |newest| newest.replicas(group).count())
    }

    /// Whether a node has files of a group. Where its journal was damaged they might be the last copy, and stay.
    pub(super) fn has_files_of(&self, id: u32, group: GroupId) -> bool {
        let node = &self.nodes[id as usize - 1];
        let of_group =
            |file: &FileId| matches!(file, FileId::Segment(of, _) | FileId::Index(of, _) if *of == group);
        !node.lossy && node.disk.files.keys().any(of_group)
    }

    /// Everything committed on a node, by offset.
    pub(super) fn read(&mut self, id: u32, group: GroupId) -> BTreeMap<i64, Vec<u8>> {
        let mut values = BTreeMap::new();
        let (mut offset, mut scratch) = (0, Vec::new());
        loop {
            self.correlation += 1;
            let correlation_id = self.correlation;
            let fetch = FetchRequest {
                group,
                offset,
                min_bytes: 0,
                max_bytes: 1 << 20,
                max_wait_ms: 0,
                consistency: Consistency::AnyReplica,
            };
            let bytes = self.fetch(id, correlation_id, fetch);
            if bytes.is_empty() {
                return values;
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (batch, behind) = BatchView::parse(rest).unwrap();
                assert!(batch.verify_crc());
                assert_eq!(batch.base_offset(), offset);
                for record in batch.records(&mut scratch).unwrap() {
                    let record = record.unwrap();
                    values.insert(record.offset, record.value.unwrap().to_vec());
                }
                offset = batch.last_offset() + 1;
                rest = behind;
            }
        }
    }

    pub(super) fn fetch(&mut self, id: u32, correlation_id: u64, fetch: FetchRequest) -> Vec<u8> {
        let (group, offset) = (fetch.group, fetch.offset);
        let mut now = self.now;
        let node = self.node(id);
        let engine = node.engine.as_mut().unwrap();
        let mut actions = Vec::new();
        let mut got = None;
        engine.handle(
            now,
            Event::Request { conn: ConnId(1), correlation_id, request: Request::Fetch(fetch) },
            &mut actions,
        );
        for _ in 0..1_000 {
            engine.end_of_pass(now, &mut actions);
            for (token, op) in std::mem::take(&mut node.io) {
                actions.push(Action::Io { token, op });
            }
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Reply { body, correlation_id: of, .. } if of == correlation_id => match body {
                        ReplyBody::Fetch { slices, .. } => {
                            got = Some(slices.iter().flat_map(|slice| slice.bytes().to_vec()).collect());
                        }
                        ReplyBody::Message(message) => panic!("{message:?}"),
                    },
                    Action::Io { token, op } => {
                        let result = node.disk.run(op);
                        engine.handle(now, Event::IoDone { token, result }, &mut actions);
                    }
                    _ => {}
                }
            }
            if let (Some(bytes), true) = (&mut got, actions.is_empty()) {
                return std::mem::take(bytes);
            }
            // A read that found no memory is tried again later.
            now.monotonic_us += 1_000;
            engine.handle(now, Event::Tick, &mut actions);
        }
        panic!("no reply to a fetch at {offset} from node {id}: {:?}", engine.partition(group));
    }

    pub(super) fn check(&mut self) {
        let first = self.nodes[0].catalog.clone().unwrap();
        assert_eq!(first.nodes.len(), self.nodes.len(), "every node is registered");
        for node in &self.nodes {
            assert_eq!(node.catalog.as_ref().unwrap().encode(), first.encode(), "the catalogues differ");
        }
        for id in self.ids() {
            self.check_metadata(id);
            let status = self.node(id).engine.as_ref().unwrap().status();
            assert_eq!(status.uncommitted_bytes, 0, "node {id}: everything is committed");
        }
        for group in self.groups.clone() {
            let holders = self.holders(group);
            assert_eq!(holders.len(), self.copies(group));
            let first = self.read(holders[0], group);
            let once: BTreeSet<_> = first.values().collect();
            assert_eq!(once.len(), first.len(), "a value is there twice");
            for id in holders.iter().copied().skip(1) {
                assert!(self.read(id, group) == first, "node {id} differs in {group}");
            }
            let acknowledged = self.acknowledged.range((group, 0)..=(group, i64::MAX));
            for ((_, offset), value) in acknowledged {
                assert_eq!(first.get(offset), Some(value), "acknowledged offset {offset} of {group}");
            }
        }
    }
}

impl World {
    /// What a client is told by any node is so.
    pub(super) fn check_metadata(&mut self, id: u32) {
        self.admin += 1;
        let (correlation_id, page) = (self.admin, MetadataRequest { topic: None, start_after: 0 });
        self.event(id, Event::Request { conn: ConnId(1), correlation_id, request: Request::Metadata(page) });
        let Some(Response::Metadata(told)) = self.answer.take() else { panic!("{:?}", self.answer) };
        assert_eq!(Some(told.controller), self.leader(GroupId::METADATA));
        for group in self.groups.clone() {
            let topic = told.topics.iter().find(|topic| topic.id == group.topic.0).unwrap();
            let partition = topic.partitions[group.partition as usize];
            let holder = self.may_hold(id, group);
            // Where no replica is, one that knows better stands for the leader.
            assert!(Some(partition.leader) == self.leader(group) || !holder, "node {id} on {group}");
            let copies = self.copies(group);
            assert_eq!((partition.shard, partition.replicas.iter().count()), (SHARD.0, copies));
            let state = self.nodes[id as usize - 1].engine.as_ref().unwrap().partition(group);
            // The only replica of a partition has no term.
            if let Some(state) = state.filter(|_| self.newest().unwrap().is_group(group)) {
                assert_eq!(partition.epoch, state.epoch);
            }
        }
    }
}
