//! Attacks of a given number of steps, which can be stopped after each.

use candle_core::DType;
use theriac::{Aim, Attack, Labels, Pass, Pixels, Result};
use theriac_attacks::{DeepFool, Fgsm, MiFgsm, Pgd, bim};

use crate::golden_models::Net;
use crate::reference::{ALL, Reference, all_agree};

/// Our implementation, stopped after `steps` steps.
fn ours(reference: &Reference, steps: u32) -> Result<Box<dyn Attack<Net>>> {
    let short = |pgd| Pgd {
        short_reach: true,
        ..pgd
    };
    if reference.name == "deepfool_l2" {
        return Ok(Box::new(DeepFool {
            steps,
            candidates: reference.entry.setting("candidates") as u32,
            overshoot: reference.entry.setting("overshoot"),
            ..DeepFool::new(reference.norm())
        }));
    }
    let (budget, step) = (reference.budget()?, reference.step()?);
    Ok(match reference.name.as_str() {
        "fgsm" | "fgm_l2" => Box::new(Fgsm { budget }),
        "bim" => Box::new(short(bim(budget.eps(), step, steps)?)),
        "mifgsm" => Box::new(MiFgsm {
            step,
            decay: reference.entry.setting("decay"),
            short_reach: true,
            ..MiFgsm::new(budget, steps)?
        }),
        "pgd_linf" | "pgd_linf_targeted" | "pgd_l2" => Box::new(Given {
            starts: reference.start_at(&reference.noise()?)?,
            pgd: short(Pgd::new(budget, step, steps)),
        }),
        other => panic!("no implementation of {other}"),
    })
}

/// PGD from known starts, found by sample id.
struct Given {
    starts: Pixels,
    pgd: Pgd,
}

impl Attack<Net> for Given {
    fn perturb(
        &self,
        model: &Net,
        clean: &Pixels,
        aim: Aim<'_, Labels>,
        pass: &Pass<'_>,
    ) -> Result<Pixels> {
        let start = self.starts.pick(pass.samples)?;
        self.pgd.perturb_from(&start, model, clean, aim, pass)
    }
}

fn agree(names: &[&str], dtype: DType) -> Result<()> {
    all_agree(names, ALL, dtype, |reference| {
        reference.disagreements(|steps| ours(reference, steps))
    })
}

const INSIDE_A_BALL: [&str; 4] = ["fg", "bim", "pgd", "mifgsm"];

#[test]
fn steps_inside_a_ball_agree_in_f64() -> Result<()> {
    agree(&INSIDE_A_BALL, DType::F64)
}

#[test]
fn steps_inside_a_ball_agree_in_f32() -> Result<()> {
    agree(&INSIDE_A_BALL, DType::F32)
}

#[test]
fn deepfool_agrees_in_f64() -> Result<()> {
    agree(&["deepfool"], DType::F64)
}

#[test]
fn deepfool_agrees_in_f32() -> Result<()> {
    agree(&["deepfool"], DType::F32)
}
