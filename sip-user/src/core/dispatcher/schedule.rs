//! In which order PBXs have their turns.

use sip_ebpf::tables::{MAX_PBX, SCHEDULE_SLOTS};

/// Smooth weighted round robin (as nginx does it): each slot as often as its weight says, spread as evenly
/// as can be. Weights are reduced by their common divisor, and scaled down if a round would not fit.
pub(super) fn interleave(weights: &[(u8, u32)]) -> (u32, [u8; SCHEDULE_SLOTS]) {
    let mut slots = [0; SCHEDULE_SLOTS];
    let divisor = weights.iter().fold(0, |a, (_, w)| gcd(a, *w)).max(1);
    let mut weights: Vec<_> = weights.iter().map(|(slot, w)| (*slot, w / divisor)).collect();
    let sum: u32 = weights.iter().map(|(_, w)| w).sum();
    if sum as usize > SCHEDULE_SLOTS {
        // Rounding the small ones up to one adds less than one for each PBX.
        let room = SCHEDULE_SLOTS as u32 - MAX_PBX;
        for (_, weight) in &mut weights {
            *weight = (*weight * room / sum).max(1);
        }
    }
    let len: u32 = weights.iter().map(|(_, w)| w).sum();
    let mut current: Vec<i64> = vec![0; weights.len()];
    for place in slots.iter_mut().take(len as usize) {
        for (now, (_, weight)) in current.iter_mut().zip(&weights) {
            *now += i64::from(*weight);
        }
        // The first of the highest, so that the order of slots decides between equals.
        let mut best = 0;
        for (i, now) in current.iter().enumerate() {
            if *now > current[best] {
                best = i;
            }
        }
        current[best] -= i64::from(len);
        *place = weights[best].0;
    }
    (len, slots)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_smooth_and_fit() {
        let turns = |weights: &[(u8, u32)]| {
            let (len, slots) = interleave(weights);
            assert!(slots[len as usize..].iter().all(|s| *s == 0));
            slots[..len as usize].to_vec()
        };
        assert!(turns(&[]).is_empty());
        assert_eq!(turns(&[(7, 16)]), [7]);
        assert_eq!(turns(&[(0, 4), (1, 4)]), [0, 1]);
        assert_eq!(turns(&[(0, 5), (1, 1), (2, 1)]), [0, 0, 1, 0, 2, 0, 0]);
        // 64 PBXs whose weights make 544: scaled to fit, everybody has a turn, in about their shares.
        let many: Vec<_> = (0..64).map(|i| (i, u32::from(i) % 16 + 1)).collect();
        let all = turns(&many);
        assert!(all.len() <= 256);
        for (slot, weight) in &many {
            let share = all.iter().filter(|s| *s == slot).count() as f64 / all.len() as f64;
            let fair = f64::from(*weight) / 544.0;
            assert!(share > 0.0 && (share - fair).abs() < 0.006, "{slot}: {share} of {fair}");
        }
        // The worst case: one heavy, the rest light.
        let mut worst: Vec<_> = (0..64).map(|i| (i, 15)).collect();
        worst[0].1 = 16;
        assert!(turns(&worst).len() <= 256);
    }
}
