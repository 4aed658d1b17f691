//! A partition's replicas, without memory of their own: metadata of many partitions is made at once.

use std::ops::Deref;

use pyralog_core::limits::MAX_REPLICATION_FACTOR;

/// One item for each replica of a partition, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaList<T> {
    len: u8,
    // What is not in use stays as it is by default, so that equal lists are equal.
    items: [T; MAX_REPLICATION_FACTOR as usize],
}

impl<T: Copy + Default> ReplicaList<T> {
    /// Adds an item; what exceeds the most replicas of a partition is dropped.
    pub fn push(&mut self, item: T) {
        if let Some(place) = self.items.get_mut(usize::from(self.len)) {
            *place = item;
            self.len = self.len.saturating_add(1);
        }
    }
}

impl<T> Deref for ReplicaList<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.items.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl<T: Copy + Default> FromIterator<T> for ReplicaList<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut list = Self::default();
        items.into_iter().for_each(|item| list.push(item));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_as_many_as_there_can_be() {
        let list: ReplicaList<u32> = (1..9).collect();
        assert_eq!(*list, [1, 2, 3, 4, 5]);
        let short: ReplicaList<u32> = [7].into_iter().collect();
        assert_eq!((short.len(), short.first(), ReplicaList::<u32>::default().len()), (1, Some(&7), 0));
        assert_ne!(short, list);
    }
}
