//! One timer for each transaction, cheap at any number of them.
//!
//! A hierarchical timing wheel (Varghese and Lauck, 1987): the lists of its slots run through an array that
//! has a place for each transaction, so to set, move or stop a timer costs the same whether there are ten
//! or a million, nothing is allocated, and nothing stale is left behind. A heap would have to be searched,
//! or hold on to what was stopped: most timers here are of 32 seconds and more and never fire, since the
//! answer comes first. In return a timer moves down from wheel to wheel, three times at most in its first
//! four minutes, and [`Wheel::next`] may be early: then what is due is to move, not to fire.

/// Milliseconds since the wheel began.
pub(super) type Tick = u64;

/// The tick that never comes.
pub(super) const NEVER: Tick = Tick::MAX;

/// Wheels, each 64 times as coarse as the one below: 139 years in all.
const LEVELS: usize = 7;
/// Slots of a wheel.
const SLOTS: usize = 64;
/// Bits of a tick that choose a slot.
const BITS: u32 = SLOTS.trailing_zeros();
/// Timers further away than this are set to it.
const FARTHEST: Tick = (1 << (BITS * LEVELS as u32)) - 1;
/// No node, no slot.
const NONE: u32 = u32::MAX;

/// See the module.
#[derive(Debug)]
pub(super) struct Wheel {
    now: Tick,
    /// Of each wheel: a bit for each slot that holds something.
    occupied: [u64; LEVELS],
    /// First and last of each slot's list.
    slots: [[(u32, u32); SLOTS]; LEVELS],
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    due: Tick,
    before: u32,
    after: u32,
    /// Slot, counted through all wheels.
    slot: u32,
}

impl Default for Wheel {
    fn default() -> Self {
        Self {
            now: 0,
            occupied: [0; LEVELS],
            slots: [[(NONE, NONE); SLOTS]; LEVELS],
            nodes: Vec::new(),
        }
    }
}

impl Wheel {
    /// Sets the timer of `number`, or moves it. What is past is due at once; [`NEVER`] stops it.
    pub(super) fn set(&mut self, number: u32, due: Tick) {
        let node = self.nodes.get(number as usize);
        if node.is_some_and(|node| node.slot != NONE && node.due == due) {
            return;
        }
        self.stop(number);
        if due == NEVER {
            return;
        }
        let at = number as usize;
        if at >= self.nodes.len() {
            let idle = Node { due: NEVER, before: NONE, after: NONE, slot: NONE };
            self.nodes.resize(at + 1, idle);
        }
        self.link(number, due.clamp(self.now, self.now | FARTHEST));
    }

    /// Stops a timer, if it runs.
    pub(super) fn stop(&mut self, number: u32) {
        let Some(node) = self.nodes.get_mut(number as usize) else { return };
        if node.slot == NONE {
            return;
        }
        let Node { before, after, slot, .. } = *node;
        node.slot = NONE;
        let (level, place) = (slot as usize / SLOTS, slot as usize % SLOTS);
        let ends = &mut self.slots[level][place];
        match before {
            NONE => ends.0 = after,
            before => self.nodes[before as usize].after = after,
        }
        match after {
            NONE => ends.1 = before,
            after => self.nodes[after as usize].before = before,
        }
        if ends.0 == NONE {
            self.occupied[level] &= !(1 << place);
        }
    }

    /// When [`Wheel::pop`] has something to do next.
    pub(super) fn next(&self) -> Option<Tick> {
        self.first().map(|(_, _, at)| at)
    }

    /// Time has passed. So what is set next goes into a wheel as fine as it can be, even if nothing has been
    /// due for long.
    pub(super) fn advance(&mut self, now: Tick) {
        if self.next().is_none_or(|at| at > now) {
            self.now = self.now.max(now);
        }
    }

    /// Stops a timer that is due at `now` and gives its number; the earliest come first.
    pub(super) fn pop(&mut self, now: Tick) -> Option<u32> {
        while let Some((level, place, at)) = self.first().filter(|(_, _, at)| *at <= now) {
            self.now = self.now.max(at);
            let (mut number, _) = self.slots[level][place];
            if level == 0 {
                self.stop(number);
                return Some(number);
            }
            // They are nearer now, and each goes to a finer wheel.
            self.slots[level][place] = (NONE, NONE);
            self.occupied[level] &= !(1 << place);
            while number != NONE {
                let Node { due, after, .. } = self.nodes[number as usize];
                self.link(number, due);
                number = after;
            }
        }
        self.now = self.now.max(now);
        None
    }

    /// Gives memory back. Only for when no timer runs.
    pub(super) fn release(&mut self) {
        debug_assert_eq!(self.occupied, [0; LEVELS]);
        self.nodes = Vec::new();
    }

    /// The slot that comes first, and when. What is in a finer wheel comes before all that is in a coarser
    /// one: it agrees with `now` in all higher digits.
    fn first(&self) -> Option<(usize, usize, Tick)> {
        let level = self.occupied.iter().position(|slots| *slots != 0)?;
        let place = self.occupied[level].trailing_zeros();
        let shift = BITS * level as u32;
        let above = self.now >> (shift + BITS) << (shift + BITS);
        Some((level, place as usize, above | Tick::from(place) << shift))
    }

    fn link(&mut self, number: u32, due: Tick) {
        // The highest digit in which it differs from now.
        let level = ((due ^ self.now) | 1).ilog2() / BITS;
        let place = (due >> (BITS * level)) as usize % SLOTS;
        let level = level as usize;
        let (first, last) = self.slots[level][place];
        let slot = (level * SLOTS + place) as u32;
        self.nodes[number as usize] = Node { due, before: last, after: NONE, slot };
        match last {
            NONE => self.slots[level][place] = (number, number),
            last => {
                self.nodes[last as usize].after = number;
                self.slots[level][place] = (first, number);
            }
        }
        self.occupied[level] |= 1 << place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn each_comes_at_its_time() {
        let mut wheel = Wheel::default();
        let dues = [0, 1, 63, 64, 65, 500, 4_095, 4_096, 32_000, 181_000, 300_000, 10_000_000];
        for (number, due) in dues.into_iter().enumerate() {
            wheel.set(number as u32, due);
        }
        for (number, due) in dues.into_iter().enumerate() {
            if due > 0 {
                assert_eq!(wheel.pop(due - 1), None, "{due} is not due yet");
            }
            assert!(wheel.next().is_some_and(|at| at <= due));
            assert_eq!(wheel.pop(due), Some(number as u32));
        }
        assert_eq!(wheel.next(), None);
        assert_eq!(wheel.occupied, [0; LEVELS]);
    }

    #[test]
    fn the_farthest_future_is_no_panic() {
        let mut wheel = Wheel::default();
        wheel.set(0, NEVER - 1);
        assert_eq!(wheel.pop(FARTHEST - 1), None);
        wheel.set(1, NEVER - 1);
        assert_eq!(wheel.pop(FARTHEST), Some(0));
        assert_eq!(wheel.pop(FARTHEST), Some(1));
        wheel.set(0, FARTHEST + 5);
        assert_eq!(wheel.pop(FARTHEST + 5), Some(0));
    }

    proptest! {
        /// Against a sorted list that does the same slowly.
        #[test]
        fn agrees_with_a_list(
            steps in proptest::collection::vec((0..4u8, 0..20u32, 0..400_000u64, 0..12u32), 1..300),
        ) {
            let mut wheel = Wheel::default();
            let mut list = BTreeMap::new();
            let mut now = 0;
            for (what, number, by, scale) in steps {
                let by = by >> scale;
                match what {
                    0 => {
                        wheel.set(number, now + by);
                        list.insert(number, now + by);
                    }
                    1 => {
                        wheel.stop(number);
                        list.remove(&number);
                    }
                    2 => {
                        now += by;
                        wheel.advance(now);
                    }
                    _ => {
                        now += by;
                        let mut came = Vec::new();
                        let mut last = 0;
                        while let Some(number) = wheel.pop(now) {
                            let due = list[&number];
                            prop_assert!(due >= last, "the earliest first");
                            last = due;
                            came.push(number);
                        }
                        came.sort_unstable();
                        let due: Vec<_> =
                            list.iter().filter(|(_, due)| **due <= now).map(|(n, _)| *n).collect();
                        prop_assert_eq!(&came, &due);
                        list.retain(|_, due| *due > now);
                    }
                }
                let first = list.values().min();
                prop_assert_eq!(wheel.next().is_some(), first.is_some());
                prop_assert!(wheel.next() <= first.copied());
            }
        }
    }
}
