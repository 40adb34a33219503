//! A removal that waits where no policy is left that could be asked: the ledger of the service says
//! so, and is agreed to.

use kube::{
    Api,
    api::{Patch, PatchParams},
};

use super::ApproveCommand;
use crate::{
    api::{APPROVE, InvokerLedger},
    cli::{
        Exit,
        act::{MANAGER, annotation},
        context::{Context, Kube, print},
    },
    render::Tone,
};

pub(super) async fn approve(
    context: &Context,
    command: &ApproveCommand,
    kube: &Kube,
    name: &str,
) -> anyhow::Result<Exit> {
    let api: Api<InvokerLedger> = Api::all(kube.client.clone());
    let Some(ledger) = api.get_opt(name).await? else {
        anyhow::bail!("there is no InvokerLedger {name}; kubectl get invokerledgers shows them");
    };
    let Some(held) = &ledger.spec.held else {
        context.complain(&format!(
            "ledger {name} holds nothing; there is nothing to approve"
        ));
        return Ok(Exit::Nothing);
    };
    if let Some(wanted) = command
        .which
        .hash
        .as_ref()
        .filter(|wanted| **wanted != held.approve)
    {
        anyhow::bail!(
            "ledger {name} holds {}, not {wanted}: the live policy has changed",
            held.approve
        );
    }
    let style = context.style();
    let (place, head) = (&ledger.spec, format!("plan {}", held.approve));
    let what = format!("{} ({}): {}", place.service, place.region, held.message);
    print(&format!(
        "{}\n{}\n",
        style.paint(Tone::Warn, &head),
        style.wrap(2, &what)
    ));
    let question = format!("Approve exactly this for ledger {name}?");
    if !context.confirm(&question, command.yes)? {
        context.complain("nothing was changed");
        return Ok(Exit::Error);
    }
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    let agreed = annotation(APPROVE, Some(&held.approve));
    api.patch(name, &params, &Patch::Merge(agreed)).await?;
    print(&format!("ledger {name} approved by its annotation\n"));
    Ok(Exit::Nothing)
}
