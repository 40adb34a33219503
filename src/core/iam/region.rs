//! The regions that are known here. Google adds some every year, so that one is missing here proves
//! nothing: it is a reason to ask, not to refuse.

/// Regions of Cloud Run.
///
/// Source: <https://docs.cloud.google.com/run/docs/locations>.
const REGIONS: &[&str] = &[
    "africa-south1",
    "asia-east1",
    "asia-east2",
    "asia-northeast1",
    "asia-northeast2",
    "asia-northeast3",
    "asia-south1",
    "asia-south2",
    "asia-southeast1",
    "asia-southeast2",
    "asia-southeast3",
    "australia-southeast1",
    "australia-southeast2",
    "europe-central2",
    "europe-north1",
    "europe-north2",
    "europe-southwest1",
    "europe-west1",
    "europe-west10",
    "europe-west12",
    "europe-west2",
    "europe-west3",
    "europe-west4",
    "europe-west6",
    "europe-west8",
    "europe-west9",
    "me-central1",
    "me-central2",
    "me-west1",
    "northamerica-northeast1",
    "northamerica-northeast2",
    "northamerica-south1",
    "southamerica-east1",
    "southamerica-west1",
    "us-central1",
    "us-east1",
    "us-east4",
    "us-east5",
    "us-south1",
    "us-west1",
    "us-west2",
    "us-west3",
    "us-west4",
];

/// Whether the region is known here.
pub fn is_region(region: &str) -> bool {
    REGIONS.contains(&region)
}

/// The known region that is nearest to one that is not known; `None`: it is known, or nothing is
/// near.
pub fn nearest_region(region: &str) -> Option<&'static str> {
    if REGIONS.contains(&region) {
        return None;
    }
    let lower = region.to_ascii_lowercase();
    let region = lower.as_str();
    if let Some(known) = REGIONS.iter().find(|known| **known == region) {
        return Some(known);
    }
    // `eu-west1` stands for `europe-west1`, which is not the nearest by letters.
    if let Some((area, rest)) = region.split_once('-')
        && let Some(whole) = REGIONS.iter().find(|known| {
            let parts = known.split_once('-');
            parts.is_some_and(|(a, r)| r == rest && a.starts_with(area))
        })
    {
        return Some(whole);
    }
    // More than a third of the letters is another word, not a slip.
    let most = |known: &str| known.len() / 3;
    let is_as_long = |known: &&&str| known.len().abs_diff(region.len()) <= most(known);
    let (near, distance) = REGIONS
        .iter()
        .filter(is_as_long)
        .map(|known| (*known, strsim::osa_distance(region, known)))
        .min_by_key(|(_, distance)| *distance)?;
    (distance <= most(near)).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_has_its_region_and_a_new_region_has_none() {
        for (written, near) in [
            ("europe-west1", None),
            ("europe-wset1", Some("europe-west1")),
            ("eurpe-west4", Some("europe-west4")),
            ("us-centrall1", Some("us-central1")),
            ("eu-west1", Some("europe-west1")),
            ("EUROPE-WEST1", Some("europe-west1")),
            ("US-Centrall1", Some("us-central1")),
            ("antarctica-south1", None),
            ("x", None),
        ] {
            assert_eq!(nearest_region(written), near, "{written}");
        }
    }
}
