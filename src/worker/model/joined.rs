//! Maps of the same input, as one matrix: query, key and value; gate and up.
//!
//! In: a model's named parameters. Out: the same parameters as views into larger matrices, and those
//! matrices by name. One product takes the place of two or three, which pays where each is small: while
//! decoding, and on a GPU, whose launches cost more than the arithmetic. Only for models that do not
//! learn: a gradient wants a tensor of its own. May not enter: attention, files.

use tch::Tensor;

/// Names, below a layer's, of what is joined, and what the joined matrix is called.
const GROUPS: [(&str, &[&str]); 2] = [
    (QUERY_KEY_VALUE, &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    (GATE_UP, &["mlp.gate_proj", "mlp.up_proj"]),
];

/// The joined matrix of query, key and value.
pub const QUERY_KEY_VALUE: &str = "self_attn.qkv_proj";
/// The joined matrix of gate and up.
pub const GATE_UP: &str = "mlp.gate_up_proj";

/// Replaces the weights of each group by views of one matrix, row after row, and gives the matrices
/// (and, where all of a group have one, the biases) under their names. A group of which something is
/// missing stays as it is; whoever needs it says so.
pub fn join(layers: usize, parameters: &mut [(String, Tensor)]) -> Vec<(String, Tensor)> {
    let _no_grad = tch::no_grad_guard();
    let mut joined = Vec::new();
    for layer in 0..layers {
        for (name, parts) in GROUPS {
            for kind in ["weight", "bias"] {
                let full = |part: &str| format!("model.layers.{layer}.{part}.{kind}");
                let places: Option<Vec<usize>> = parts
                    .iter()
                    .map(|part| parameters.iter().position(|(own, _)| *own == full(part)))
                    .collect();
                let Some(places) = places else { continue };
                joined.push((full(name), join_places(parameters, &places)));
            }
        }
    }
    joined
}

fn join_places(parameters: &mut [(String, Tensor)], places: &[usize]) -> Tensor {
    let parts: Vec<&Tensor> = places.iter().map(|place| &parameters[*place].1).collect();
    let whole = Tensor::cat(&parts, 0);
    let mut first = 0;
    for place in places {
        let rows = parameters[*place].1.size()[0];
        parameters[*place].1 = whole.narrow(0, first, rows);
        first += rows;
    }
    whole
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn parameters_are_views_with_the_values_that_they_had() {
        let part = |name: &str, rows: i64| {
            let values = Tensor::randn([rows, 4], (Kind::Float, Device::Cpu));
            (format!("model.layers.0.{name}.weight"), values)
        };
        let mut parameters = vec![
            part("self_attn.v_proj", 2),
            part("self_attn.q_proj", 6),
            part("mlp.gate_proj", 5),
            part("self_attn.k_proj", 2),
        ];
        let before: Vec<Tensor> = parameters.iter().map(|(_, tensor)| tensor.copy()).collect();
        let joined = join(1, &mut parameters);
        // Gate has no up beside it.
        let names: Vec<&str> = joined.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["model.layers.0.self_attn.qkv_proj.weight"]);
        assert_eq!(joined[0].1.size(), [10, 4]);
        assert_eq!(joined[0].1.narrow(0, 0, 6), before[1]);
        assert_eq!(joined[0].1.narrow(0, 8, 2), before[0]);
        for ((_, now), before) in parameters.iter().zip(&before) {
            assert_eq!(now, before);
        }
        let shared = parameters[1].1.data_ptr();
        assert_eq!(shared, joined[0].1.data_ptr());
    }
}
