//! Norms in two banks.

use candle_core::{Tensor, Var};
use theriac::{Bank, Classifier, Error, Pass, Pixels, Result};
use theriac_nn::{BatchNorm, Form, Layer, Layers, Moments, Params, Plain, VarBuilder};

/// The bank that adversarial images go through; the ordinary one is [`Bank`] 0.
pub const AUXILIARY: Bank = Bank(1);

/// Every batch norm twice, with parameters and statistics of its own: the ordinary one under its
/// path, the auxiliary one under `auxiliary` below it. Which one a pass takes says its bank.
///
/// Xie, Tan, Gong, Wang, Yuille & Le, "Adversarial examples improve image recognition", CVPR 2020.
/// A network so built holds the parameters of the plain one under their names: [`TwoBanks::start`]
/// takes them from there, [`TwoBanks::finish`] gives them back without the auxiliary bank.
#[derive(Clone, Copy, Debug)]
pub struct TwoBanks {
    /// Layer norms twice as well, for networks without batch norms: the paper has DeiT among its
    /// networks and does not say what is auxiliary there.
    pub layer_norms: bool,
}

impl Default for TwoBanks {
    fn default() -> Self {
        Self { layer_norms: true }
    }
}

/// Name of the auxiliary norm below the ordinary one.
const NAME: &str = "auxiliary";

impl TwoBanks {
    /// Starts from a trained network: both banks take its norms, the rest its weights.
    ///
    /// # Errors
    /// [`Error::Setting`] for a network without a second bank, or one that is built otherwise.
    pub fn start(params: &Params, plain: &Params) -> Result<()> {
        for (here, there) in shared(params, plain)? {
            here.set(&there.as_tensor().copy()?)?;
        }
        Self::copy(params)
    }

    /// Sets a plain network to this one as it is through the ordinary norms, to be saved and used
    /// without knowing of banks.
    ///
    /// # Errors
    /// [`Error::Setting`] for a network that is built otherwise.
    pub fn finish(params: &Params, plain: &Params) -> Result<()> {
        for (here, there) in shared(params, plain)? {
            there.set(&here.as_tensor().copy()?)?;
        }
        Ok(())
    }

    /// Sets the auxiliary bank to the ordinary one: values and statistics.
    ///
    /// # Errors
    /// [`Error::Setting`] for a network without a second bank.
    pub fn copy(params: &Params) -> Result<()> {
        let all = params.all();
        let mut copied = 0;
        for (path, var) in &all {
            let Some(main) = main_path(path) else {
                continue;
            };
            let Some((_, from)) = all.iter().find(|(other, _)| *other == main) else {
                continue;
            };
            var.set(&from.as_tensor().copy()?)?;
            copied += 1;
        }
        match copied {
            0 => Err(Error::Setting {
                name: "banks",
                value: "1".to_owned(),
                remedy: "build the network with TwoBanks",
            }),
            _ => Ok(()),
        }
    }
}

/// The variables of a plain network, behind those of the same path here.
fn shared(params: &Params, plain: &Params) -> Result<Vec<(Var, Var)>> {
    let all = params.all();
    let pairs = plain.all().into_iter().map(|(path, there)| {
        let here = all
            .iter()
            .find(|(other, var)| *other == path && var.dims() == there.dims());
        match here {
            Some((_, here)) => Ok((here.clone(), there)),
            None => Err(Error::Setting {
                name: "network",
                value: format!("{path} of {:?}", there.dims()),
                remedy: "build both networks alike, one with Plain and one with TwoBanks",
            }),
        }
    });
    pairs.collect()
}

/// The ordinary parameter of an auxiliary one: `bn1.auxiliary.weight` to `bn1.weight`.
fn main_path(path: &str) -> Option<String> {
    let (at, leaf) = path.rsplit_once('.')?;
    let at = at.strip_suffix(NAME)?.strip_suffix('.')?;
    Some(format!("{at}.{leaf}"))
}

impl Layers for TwoBanks {
    fn norm(&self, spec: &BatchNorm, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        Ok(Box::new(Banks {
            main: Plain.norm(spec, vb.clone())?,
            auxiliary: Plain.norm(spec, vb.pp(NAME))?,
        }))
    }

    fn layer_norm(&self, width: usize, eps: f64, vb: VarBuilder) -> Result<Box<dyn Layer>> {
        if !self.layer_norms {
            return Plain.layer_norm(width, eps, vb);
        }
        Ok(Box::new(Banks {
            main: Plain.layer_norm(width, eps, vb.clone())?,
            auxiliary: Plain.layer_norm(width, eps, vb.pp(NAME))?,
        }))
    }
}

/// A classifier through one bank of its norms: [`AUXILIARY`] tests the other reading of the paper.
#[derive(Clone, Copy, Debug)]
pub struct Through<C> {
    /// A network of [`TwoBanks`].
    pub model: C,
    /// The bank.
    pub bank: Bank,
}

impl<C: Classifier> Classifier for Through<C> {
    fn logits(&self, x: &Pixels, pass: &Pass<'_>) -> Result<Tensor> {
        let pass = Pass {
            bank: self.bank,
            ..*pass
        };
        self.model.logits(x, &pass)
    }

    fn classes(&self) -> usize {
        self.model.classes()
    }
}

struct Banks {
    main: Box<dyn Layer>,
    auxiliary: Box<dyn Layer>,
}

impl Banks {
    fn of<'p>(&self, pass: &Pass<'p>) -> Result<(&dyn Layer, Pass<'p>)> {
        // Each norm is a network's only one.
        let alone = Pass {
            bank: Bank::default(),
            ..*pass
        };
        match pass.bank {
            Bank(0) => Ok((&*self.main, alone)),
            AUXILIARY => Ok((&*self.auxiliary, alone)),
            Bank(other) => Err(Error::Setting {
                name: "bank",
                value: other.to_string(),
                remedy: "use 0, or 1 for the auxiliary one",
            }),
        }
    }
}

impl Layer for Banks {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (layer, pass) = self.of(pass)?;
        layer.forward(x, &pass)
    }

    fn form(&self, pass: &Pass<'_>) -> Result<Option<Form>> {
        let (layer, pass) = self.of(pass)?;
        layer.form(&pass)
    }

    fn observe(&self, batch: &Moments, pass: &Pass<'_>) -> Result<()> {
        let (layer, pass) = self.of(pass)?;
        layer.observe(batch, &pass)
    }
}
