//! Worlds of which only a part is shown: whatever is named as the cause has to be one there.
//!
//! A world has who is granted where, by what, since when, and what stands in front; from that
//! follows the answer that the caller gets. `diagnose` sees some of the policies, and some of the
//! answer. The judge here knows the whole world. It shares nothing with what it judges: it is
//! written from the order of checks that Google documents.

use super::*;

/// The numbers of a world, from its seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True once in so many times.
    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[(self.next() % all.len() as u64) as usize]
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Condition {
    None,
    Over,
    Later,
    OtherPath,
}

#[derive(Clone, Copy, Debug)]
struct Granted {
    /// 0 is the resource itself; the last two are a folder and the organization.
    place: usize,
    member: &'static str,
    role: &'static str,
    condition: Condition,
    /// IAM does not act on it yet.
    young: bool,
    /// The operator made it, and has a record of that.
    recorded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sent {
    Nothing,
    Good,
    ForAnother,
    SomebodyElses,
}

/// Who gave the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Gateway,
    Perimeter,
    Ingress,
    Iap,
    Iam,
    Application,
}

#[derive(Debug)]
struct Answered {
    by: By,
    status: u16,
    /// As `curl -si` prints it.
    text: String,
    /// The text of its entry in the request log, if there is one: empty where an instance answered.
    entry: Option<String>,
}

#[derive(Debug)]
struct World {
    invokers: Vec<Granted>,
    accessors: Vec<Granted>,
    in_group: bool,
    custom_carries: bool,
    denied: bool,
    perimeter: bool,
    gateway: bool,
    internal: bool,
    inside: bool,
    iap: bool,
    check_off: bool,
    sent: Sent,
    application: (u16, &'static str),
    foreign: bool,
}

const OTHER: &str = "user:x@acme.com";
const GROUP: &str = "group:callers@acme.com";
const INVOKER: &str = "roles/run.invoker";
/// The service, its project, a folder and the organization.
const LEVELS: usize = 4;

impl World {
    fn of(dice: &mut Dice) -> Self {
        let grants = |dice: &mut Dice, role: &'static str, places: usize| -> Vec<Granted> {
            let number = dice.next() % 4;
            let one = |dice: &mut Dice| Granted {
                place: (dice.next() % places as u64) as usize,
                member: dice.of(&[CALLER, CALLER, CALLER, GROUP, OTHER, AGENT, "allUsers"]),
                role: dice.of(&[role, role, role, CUSTOM, "roles/run.viewer"]),
                condition: dice.of(&[
                    Condition::None,
                    Condition::None,
                    Condition::None,
                    Condition::Over,
                    Condition::Later,
                    Condition::OtherPath,
                ]),
                young: dice.one_in(6),
                recorded: dice.one_in(2),
            };
            (0..number).map(|_| one(dice)).collect()
        };
        let invokers = grants(dice, INVOKER, LEVELS);
        let mut accessors = grants(dice, IAP_ROLE, LEVELS + 2);
        accessors.retain(|g| g.member != "allUsers");
        Self {
            invokers,
            accessors,
            in_group: dice.one_in(2),
            custom_carries: dice.one_in(2),
            denied: dice.one_in(6),
            perimeter: dice.one_in(12),
            gateway: dice.one_in(12),
            internal: dice.one_in(5),
            inside: dice.one_in(2),
            iap: dice.one_in(5),
            check_off: dice.one_in(12),
            sent: dice.of(&[
                Sent::Good,
                Sent::Good,
                Sent::Good,
                Sent::Nothing,
                Sent::ForAnother,
                Sent::SomebodyElses,
            ]),
            application: dice.of(&[
                (200, "{}"),
                (200, "{}"),
                (101, ""),
                (403, "{\"error\":\"not your order\"}"),
                (403, "<html><title>403 Forbidden</title></html>"),
                (404, "{\"error\":\"no such order\"}"),
                (302, ""),
            ]),
            foreign: dice.one_in(6),
        }
    }

    fn is(&self, member: &str, who: &str) -> bool {
        member == who || member == "allUsers" || (member == GROUP && who == CALLER && self.in_group)
    }

    fn carries(&self, role: &str, wanted: &str) -> bool {
        role == wanted || (role == CUSTOM && self.custom_carries)
    }

    /// Whether the policies say so; `now`: and IAM acts on it.
    fn allows(&self, grants: &[Granted], wanted: &str, who: &str, now: bool) -> bool {
        let counts = |g: &&Granted| {
            self.is(g.member, who)
                && self.carries(g.role, wanted)
                && matches!(g.condition, Condition::None | Condition::Later)
                && !(now && g.young)
        };
        grants.iter().any(|g| counts(&g))
    }

    fn may_invoke(&self, who: &str, now: bool) -> bool {
        self.allows(&self.invokers, INVOKER, who, now)
    }

    fn passes_iap(&self, who: &str, now: bool) -> bool {
        self.allows(&self.accessors, IAP_ROLE, who, now)
    }

    /// What the caller gets: the checks from the outside in.
    fn answer(&self, dice: &mut Dice) -> Answered {
        let made = |by, status: u16, headers: &str, body: &str, entry: Option<&str>| Answered {
            by,
            status,
            text: format!("HTTP/2 {status} \r\n{headers}\r\n{body}"),
            entry: entry.map(str::to_owned),
        };
        let google = "server: Google Frontend\r\n";
        if self.gateway {
            let body = dice.of(&[
                "RBAC: access denied",
                "{\"message\":\"no\"}",
                "<html><title>403 Forbidden</title></html>",
            ]);
            return made(By::Gateway, 403, "server: envoy\r\n", body, None);
        }
        if self.perimeter {
            let body = "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: x";
            return made(By::Perimeter, 403, google, body, None);
        }
        if self.internal && !self.inside {
            let body = "<!DOCTYPE html><html lang=en><title>Error 404 (Page not found)!!1</title><p>The requested URL <code>/orders</code> was not found on this server. <ins>That’s all we know.</ins></html>";
            return made(By::Ingress, 404, "", body, None);
        }
        if self.iap && !self.passes_iap(CALLER, true) {
            let header = "X-Goog-IAP-Generated-Response: true\r\n";
            return made(
                By::Iap,
                403,
                header,
                "<html>You don't have access</html>",
                None,
            );
        }
        if !self.check_off
            && let Some((status, text)) = self.refused_by_iam(dice)
        {
            let page = match status {
                401 => "Your client does not have permission to the requested URL",
                _ => "Your client does not have permission to get URL",
            };
            let body = format!("<html><title>Error</title><h2>{page} <code>/</code></h2></html>");
            return made(By::Iam, status, google, &body, Some(&text));
        }
        let (status, body) = self.application;
        made(By::Application, status, google, body, Some(""))
    }

    fn refused_by_iam(&self, dice: &mut Dice) -> Option<(u16, String)> {
        const NOT_VERIFIED: &str = "The request was not authorized to invoke this service. The access token could not be verified.";
        let bare = dice.one_in(3);
        let said = |ending: &str| {
            let ending = if bare { "" } else { ending };
            Some((403, format!("{NOT_AUTHENTICATED}{ending}")))
        };
        // Behind Identity-Aware Proxy it is that which calls, with a token in order.
        let (sent, who) = match (self.iap, self.sent) {
            (true, _) => (Sent::Good, AGENT),
            (false, Sent::SomebodyElses) => (self.sent, OTHER),
            (false, sent) => (sent, CALLER),
        };
        if sent == Sent::ForAnother {
            return Some((401, NOT_VERIFIED.into()));
        }
        let is_public = self.may_invoke("nobody", true);
        if sent == Sent::Nothing {
            return (!is_public || self.denied)
                .then(|| said(" Empty Authorization header value."))
                .flatten();
        }
        let lacks = self.denied || !self.may_invoke(who, true);
        lacks
            .then(|| said(" The IAM principal lacks {run.routes.invoke} permission."))
            .flatten()
    }

    /// The policy of one place.
    fn policy(grants: &[Granted], place: usize) -> Known<Policy> {
        let expression = |c: Condition| match c {
            Condition::None => None,
            Condition::Over => Some("request.time < timestamp(\"2026-11-24T11:59:59Z\")"),
            Condition::Later => Some("request.time < timestamp(\"2026-12-24T12:00:00Z\")"),
            Condition::OtherPath => Some("request.path.startsWith('/admin')"),
        };
        let binding = |g: &Granted| {
            let mut binding = json!({"role": g.role, "members": [g.member]});
            if let Some(text) = expression(g.condition) {
                binding["condition"] = json!({"title": "t", "expression": text});
            }
            binding
        };
        let here = grants.iter().filter(|g| g.place == place);
        Known::Is(policy(here.map(binding).collect()))
    }

    /// What Policy Troubleshooter says of somebody, if asked by one who may see everything.
    fn troubleshot(&self, who: &str) -> Known<Answer> {
        let counts = |g: &&Granted| self.allows(&[**g], INVOKER, who, false);
        let places = [
            "projects/acme-prod/locations/europe-west1/services/web",
            "projects/acme-prod",
            "folders/11",
            "organizations/1",
        ];
        let by: Vec<String> = self
            .invokers
            .iter()
            .filter(counts)
            .map(|g| format!("{} on {}", g.role, places[g.place]))
            .collect();
        let by: Vec<&str> = by.iter().map(String::as_str).collect();
        let says = |yes: bool| if yes { Says::Yes } else { Says::No };
        troubleshot(says(!by.is_empty()), &by, says(self.denied))
    }

    /// What somebody sees of it, who may see some, and has some of the answer.
    fn seen(&self, answer: &Answered, dice: &mut Dice) -> Facts {
        let may_see = {
            let rarely = dice.one_in(2);
            move |dice: &mut Dice| !rarely || dice.one_in(2)
        };
        let shown = |dice: &mut Dice, policy: Known<Policy>| {
            if may_see(dice) { policy } else { hidden() }
        };
        let policy = shown(dice, Self::policy(&self.invokers, 0));
        // The project's policy and those above it hold the grants for Identity-Aware Proxy too.
        let both = |place: usize| {
            let mut all = self.invokers.clone();
            all.retain(|g| g.place == place);
            let accessors = self.accessors.iter().filter(|g| g.place == place + 2);
            all.extend(accessors.map(|g| Granted { place, ..*g }));
            Self::policy(&all, place)
        };
        let mut above = vec![Place::new("the project", shown(dice, both(1)))];
        if dice.one_in(3) {
            above.push(Place::new("its folders and organization", hidden()));
        } else {
            above.push(Place::new("folders/11", shown(dice, both(2))));
            above.push(Place::new("organizations/1", shown(dice, both(3))));
        }
        let iap = ["the service", "its region", "its project's IAP"];
        let iap = iap.iter().enumerate();
        let iap = iap
            .map(|(at, name)| Place::new(*name, shown(dice, Self::policy(&self.accessors, at))))
            .collect();
        let recorded = self.invokers.iter().filter(|g| g.recorded && g.place == 0);
        let mut granted_at = BTreeMap::new();
        for g in recorded {
            let ago = if g.young { 60 } else { 3600 };
            for (member, at) in granted_for(ago, g.member) {
                let known = granted_at.entry(member).or_insert(at);
                *known = at.max(*known);
            }
        }
        let symptom = self.symptom(answer, dice);
        let shows_token = self.sent == Sent::SomebodyElses || dice.one_in(2);
        let token = self.token().filter(|_| shows_token);
        let principal = fine().principal.filter(|_| !dice.one_in(6));
        let asked = principal
            .clone()
            .or(token.as_ref().and_then(Token::principal));
        Facts {
            url: match self.foreign {
                true => Some("https://shop.acme.com/orders".into()),
                false => Some(format!("{URL}/orders")).filter(|_| !dice.one_in(4)),
            },
            front: match dice.one_in(8) {
                true => hidden(),
                false => front(|f| {
                    f.iap = self.iap;
                    f.invoker_iam_disabled = self.check_off;
                    if self.internal {
                        f.ingress = "INGRESS_TRAFFIC_INTERNAL_ONLY".into();
                    }
                }),
            },
            policy,
            above,
            iap,
            // It can only be asked about somebody.
            troubleshooter: match (dice.next() % 4, &asked) {
                (0, Some(who)) => self.troubleshot(who.as_str()),
                (1, Some(_)) => troubleshot(Says::Unknown, &[], Says::Unknown),
                _ => Known::NotAsked,
            },
            principal,
            token,
            declared: if dice.one_in(6) {
                public(Declared::default())
            } else {
                Known::Is(Vec::new())
            },
            granted_at,
            symptom,
            ..fine()
        }
    }

    fn token(&self) -> Option<Token> {
        match self.sent {
            Sent::Nothing => None,
            Sent::Good => token(claims(|_| {}), "s"),
            Sent::ForAnother => token(claims(|c| c["aud"] = json!("https://example.com")), "s"),
            Sent::SomebodyElses => token(
                claims(|c| {
                    c["aud"] = json!("32555940559.apps.googleusercontent.com");
                    c["email"] = json!("x@acme.com");
                }),
                "s",
            ),
        }
    }

    fn symptom(&self, answer: &Answered, dice: &mut Dice) -> Symptom {
        let mut symptom = Symptom::default();
        match dice.next() % 6 {
            0 => {}
            1 => symptom.status = Some(answer.status),
            2 => symptom.take_in_answer(&answer.text),
            // The body alone.
            3 => {
                symptom.status = Some(answer.status);
                symptom.take_in_answer(answer.text.split_once("\r\n\r\n").map_or("", |(_, b)| b));
            }
            _ => match &answer.entry {
                Some(text) if text.is_empty() => {
                    symptom = Symptom::of_entry(&entry(answer.status, None)).0;
                }
                Some(text) => symptom = logged(answer.status, text),
                None => {
                    symptom = status(answer.status, false);
                    if dice.one_in(2) {
                        symptom.take_in_answer(&answer.text);
                    }
                }
            },
        }
        symptom
    }

    /// Whether a verdict is true here. `None`: it names no cause.
    fn bears_out(&self, cause: Cause, facts: &Facts, answer: &Answered) -> Option<bool> {
        let symptom = &facts.symptom;
        let knows_answer = symptom.status.is_some();
        // Whom it is about: a token that was given shows who calls.
        let who = if facts.principal.is_none() && self.sent == Sent::SomebodyElses {
            OTHER
        } else {
            CALLER
        };
        // Who says nothing of Cloud Run's was not asked by it.
        let is_foreign = symptom.text.is_some() && answer.by != By::Iam;
        let may_now = self.may_invoke(who, true) && !self.denied;
        Some(match cause {
            Cause::AccessUnverified
            | Cause::CannotTell
            | Cause::NoTokenOrNoGrant
            | Cause::MaybeThroughAGroup => return None,
            Cause::NotGranted | Cause::AccessEnded | Cause::ConditionFalse if is_foreign => false,
            Cause::IamCheckOff => self.check_off,
            Cause::TheApplication => answer.by == By::Application,
            Cause::IngressBlocks => answer.by == By::Ingress,
            Cause::PerimeterOrDeny => self.denied || answer.by == By::Perimeter,
            Cause::IapDecides => answer.by == By::Iap,
            Cause::IapNotGranted => !self.passes_iap(who, true),
            Cause::IapAgentMissing => !self.may_invoke(AGENT, true),
            Cause::NoToken => self.sent == Sent::Nothing || answer.by == By::Iam,
            Cause::NotAnIdToken | Cause::WrongAudience => self.sent == Sent::ForAnother,
            Cause::WrongPrincipal => self.sent == Sent::SomebodyElses,
            Cause::PublicGrantMissing => self.denied || !self.may_invoke("nobody", true),
            // Of nobody that is named: of whoever Cloud Run refused.
            Cause::NotGranted if facts.principal.is_none() && facts.token.is_none() => {
                answer.by == By::Iam
            }
            Cause::NotGranted | Cause::AccessEnded | Cause::ConditionFalse => !may_now,
            // No old grant lets it in.
            Cause::Propagating => self
                .invokers
                .iter()
                .any(|g| g.young && self.is(g.member, who)),
            Cause::AccessExpected if knows_answer && matches!(answer.status, 101 | 200) => true,
            Cause::AccessExpected => {
                let through_iap =
                    !self.iap || (self.passes_iap(who, false) && self.may_invoke(AGENT, false));
                let is_invoker = self.iap || self.may_invoke(who, false) && !self.denied;
                let is_reached = !self.internal || self.inside;
                through_iap && (is_invoker || self.check_off) && is_reached
            }
            // No world is about anything else.
            _ => false,
        })
    }
}

/// Runs the worlds of some seeds; how many had a cause named.
fn judge(seeds: std::ops::Range<u64>) -> usize {
    let mut named = 0;
    for seed in seeds {
        let mut dice = Dice(seed);
        let world = World::of(&mut dice);
        let answer = world.answer(&mut dice);
        let facts = world.seen(&answer, &mut dice);
        let found = diagnose(&facts);
        let is_true = world.bears_out(found.cause, &facts, &answer);
        assert!(
            is_true != Some(false),
            "seed {seed}: {:?} is not true of {world:#?}\nwhich answered {answer:#?}\nand showed {facts:#?}\n{found:#?}",
            found.cause
        );
        named += usize::from(is_true.is_some());
    }
    named
}

#[test]
fn what_is_named_as_the_cause_is_one_in_the_world() {
    const WORLDS: u64 = 30_000;
    let named = judge(0..WORLDS);
    // A diagnosis that is never sure would be right too.
    assert!(
        named as u64 > WORLDS / 3,
        "only {named} of {WORLDS} worlds had a cause named"
    );
}
