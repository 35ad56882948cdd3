"""The examples of Keras's repository, and the rows of the table that stand for their training.

`conformance.page` makes `docs/keras-examples.md` from this module. An example that Keras has moved is listed in its
last folder. An example that Keras has removed is listed in the folder that it was in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Covered:
    """An example whose training is covered by rows of the table.

    Attributes:
        rows: names of features.
        note: a difference that is not in these rows.
    """

    rows: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class LeftOut:
    """An example that does not train with `fit` on rows.

    Attributes:
        reason: the reason.
    """

    reason: str


def by(*rows: str, note: str = "") -> Covered:
    return Covered(rows, note)


UNTRAINED = LeftOut("no training")
OWN_LOOP = LeftOut("its own training loop, without `fit`")
OWN_DATA = LeftOut("reinforcement learning: makes its own data")
JAX, PYTORCH, MLX = (LeftOut(f"trains with {name}") for name in ("JAX", "PyTorch", "MLX"))
KERAS_NLP, KERAS_CV = (LeftOut(f"needs {name}") for name in ("KerasNLP", "KerasCV"))
TRANSFORMERS = LeftOut("needs Hugging Face Transformers, whose models use Keras 2")

IMAGES = "images: Conv2D, MaxPooling2D"
SHORTCUTS = "images: SeparableConv2D with shortcuts"
PATCHES = "images: vision Transformer"
PIXELS = "images: autoencoder that removes noise"
FILMS = "films: ConvLSTM2D"
TEXT = "text: Transformer"
LSTM = "text: Bidirectional LSTM"
TRANSLATION = "text: sequence to sequence, GRU and attention"
SERIES = "series: causal Conv1D, GRU, LSTM"
RATINGS = "ratings: product of embeddings"
MIXING = "ratings: a layer that mixes the rows of a batch"
WIDE = "tables: wide and deep, IntegerLookup"
SEGMENTS = "segmentation, classes"
FROZEN = "frozen layers"
AGAIN = "trainable changed between two trainings, compiled again"
SMOOTHED = "label_smoothing, from_logits"
ADAMW = "AdamW(weight_decay, global_clipnorm)"
WHOLE = "a function of the whole batch"
RIVALS = "train_step with two optimizers"
OWN_MEAN = "train_step with its own mean"
GUIDE = "train_step of Keras's guide"
RETURNED = "train_step that returns its loss and metrics"
OF_ROWS = "triplets: train_step with a loss for each row"
COMPARED = "views: train_step that compares the rows of a batch"
OWN_CALL = "images: a Loss with its own `__call__`, which compares rows"
DIFFUSION = "images: diffusion, train_step that keeps a moving average of the weights"
STRINGS = "strings"
TEXTS = "TextVectorization adapted in build_model"
NORMALIZED = "Normalization adapted in build_model"
PREDICTS = "callbacks that predict"
STOPS = "EarlyStopping(restore_best_weights)"
BEST = "ModelCheckpoint(save_best_only)"
PLATEAU = "ReduceLROnPlateau"
TENSORBOARD = "TensorBoard"
OF_BINARY = "class_weight of binary labels"
OF_CLASSES = "class_weight of one-hot classes"
MIXED = "rows must be mixed before `fit`, in Spark or in the dataset of a `main_fun`"

EXAMPLES: dict[str, dict[str, Covered | LeftOut]] = {
    "examples": {
        "demo_custom_jax_workflow": JAX,
        "demo_custom_layer_backend_agnostic": by("metrics of numbers"),
        "demo_custom_mlx_workflow": MLX,
        "demo_custom_tf_workflow": OWN_LOOP,
        "demo_custom_torch_workflow": PYTORCH,
        "demo_custom_transformer_block": by(TEXT),
        "demo_functional": by("metrics of numbers"),
        "demo_jax_distributed": JAX,
        "demo_mnist_convnet": by(IMAGES),
        "demo_subclass": by("metrics of numbers"),
        "demo_torch_multi_gpu": PYTORCH,
    },
    "examples/keras_io/generative": {
        "pixelcnn": by("images: PixelCNN, a kernel masked in each step"),
        "text_generation_gpt": KERAS_NLP,
        "text_generation_with_miniature_gpt": by("text: causal attention, an output without loss", PREDICTS),
    },
    "examples/keras_io/nlp": {
        "addition_rnn": by(LSTM, "tagging"),
        "bidirectional_lstm_imdb": by(LSTM),
        "gpt2_text_generation_with_kerasnlp": KERAS_NLP,
        "lstm_seq2seq": by(TRANSLATION),
        "multiple_choice_task_with_transfer_learning": KERAS_NLP,
        "neural_machine_translation_with_keras_nlp": KERAS_NLP,
        "neural_machine_translation_with_transformer": by(TRANSLATION, TEXT, TEXTS, "mask of steps"),
        "pretraining_BERT": TRANSFORMERS,
    },
    "examples/keras_io/pytorch": {"torchvision_keras": PYTORCH},
    "examples/keras_io/structured_data": {
        "collaborative_filtering_movielens": by(MIXING),
        "deep_neural_decision_forests": by("tables: decision forest with randomly chosen features", STRINGS),
        "tabtransformer": by(WIDE, TEXT, STRINGS, "sample_weight"),
    },
    "examples/keras_io/tensorflow/audio": {
        "speaker_recognition_using_cnn": by(SERIES, SHORTCUTS, STOPS, BEST),
        "transformer_asr": by("speech: train_step that calls compute_loss with weights of words", TEXT),
        "uk_ireland_accent_recognition": by(
            OF_CLASSES, "metrics of one-hot classes", STOPS, BEST, TENSORBOARD
        ),
    },
    "examples/keras_io/tensorflow/generative": {
        "cyclegan": by(RIVALS, RETURNED, "ModelCheckpoint(save_weights_only)"),
        "dcgan_overriding_train_step": by(RIVALS),
        "ddim": by(DIFFUSION, NORMALIZED, "ModelCheckpoint(save_weights_only)"),
        "ddpm": by(DIFFUSION, OWN_MEAN),
        "deep_dream": UNTRAINED,
        "lstm_character_level_text_generation": by(SERIES),
        "neural_style_transfer": UNTRAINED,
        "vae": by("images: variational autoencoder, train_step"),
        "wgan_gp": by("images: WGAN, gradient penalty, two steps of the critic", RETURNED, PREDICTS),
    },
    "examples/keras_io/tensorflow/keras_recipes": {
        "antirectifier": by(IMAGES),
        "endpoint_layer_pattern": by("tables: endpoint layer that calls a loss of Keras"),
        "subclassing_conv_layers": by(IMAGES),
        "tensorflow_numpy_models": by("metrics of numbers", WHOLE, TENSORBOARD),
        "tf_serving": UNTRAINED,
        "trainer_pattern": by(OWN_MEAN, GUIDE),
    },
    "examples/keras_io/tensorflow/nlp": {
        "end_to_end_mlm_with_bert": by(
            "text: masked language model, train_step with weights of words", FROZEN, AGAIN, PREDICTS
        ),
        "multi_label_classification": by("BinaryCrossentropy, multi-hot", TEXTS),
        "ner_transformers": by(TEXT, WHOLE),
        "pretrained_word_embeddings": by(SERIES, FROZEN, TEXTS),
        "text_classification_from_scratch": by(SERIES, TEXTS),
        "text_extraction_with_bert": TRANSFORMERS,
    },
    "examples/keras_io/tensorflow/rl": {"actor_critic_cartpole": OWN_DATA},
    "examples/keras_io/tensorflow/structured_data": {
        "imbalanced_classification": by(OF_BINARY, "metrics of binary labels"),
        "movielens_recommendations_transformers": by(RATINGS, TEXT, STRINGS),
        "structured_data_classification_from_scratch": by(WIDE, STRINGS, NORMALIZED),
        "structured_data_classification_with_feature_space": by("tables: FeatureSpace"),
    },
    "examples/keras_io/tensorflow/timeseries": {
        "eeg_signal_classification": by(SERIES, OF_CLASSES, "Adam(amsgrad, clipvalue)", BEST, PLATEAU),
        "timeseries_traffic_forecasting": by("roads: graph convolution, LSTM", STOPS),
    },
    "examples/keras_io/tensorflow/vision": {
        "bit": by(FROZEN, "PiecewiseConstantDecay", STOPS),
        "captcha_ocr": by("lines of text: a layer that adds the CTC loss", LSTM, STOPS),
        "cutmix": by(SHORTCUTS, "CategoricalCrossentropy, one-hot", note=MIXED),
        "deit": by(PATCHES, OWN_MEAN, "distillation: a teacher in compute_loss"),
        "grad_cam": UNTRAINED,
        "image_captioning": by(
            "captions: train_step that divides by the batch's number of words", TEXT, STOPS
        ),
        "integrated_gradients": UNTRAINED,
        "involution": by(IMAGES, PATCHES),
        "knowledge_distillation": by("distillation: a teacher in compute_loss", RETURNED),
        "mirnet": by(PIXELS, WHOLE, PLATEAU),
        "mixup": by(IMAGES, "CategoricalCrossentropy, one-hot", note=MIXED),
        "mobilevit": by(SHORTCUTS, PATCHES, SMOOTHED, "ModelCheckpoint(save_weights_only)"),
        "perceiver_image_classification": by(PATCHES, PLATEAU, STOPS),
        "reptile": OWN_LOOP,
        "semantic_image_clustering": by(COMPARED, OF_ROWS, OWN_CALL, "several inputs and outputs, by name"),
        "semisupervised_simclr": by(COMPARED, OF_ROWS, RIVALS),
        "shiftvit": by(GUIDE, PATCHES, STOPS),
        "siamese_network": by(OF_ROWS, FROZEN),
        "simsiam": by(OWN_MEAN, "CosineDecay", FROZEN),
        "swim_transformers": by(PATCHES, SMOOTHED),
        "visualizing_what_convnets_learn": UNTRAINED,
        "vit_small_ds": by(PATCHES, ADAMW, NORMALIZED),
        "zero_dce": by(OWN_MEAN, PIXELS),
    },
    "examples/keras_io/timeseries": {
        "timeseries_anomaly_detection": by(SERIES, PIXELS, STOPS),
        "timeseries_classification_from_scratch": by(SERIES, BEST, PLATEAU, STOPS),
        "timeseries_classification_transformer": by(TEXT, SERIES, STOPS),
        "timeseries_weather_forecasting": by(SERIES, STOPS, BEST),
    },
    "examples/keras_io/vision": {
        "attention_mil_classification": by(
            "bags: attention over a list of inputs, class weights", STOPS, BEST
        ),
        "autoencoder": by(PIXELS),
        "cait": UNTRAINED,
        "cct": by(PATCHES, SMOOTHED, ADAMW, BEST),
        "conv_lstm": by(FILMS, STOPS, PLATEAU),
        "convmixer": by(SHORTCUTS, ADAMW, BEST),
        "deeplabv3_plus": by(SEGMENTS, SHORTCUTS),
        "eanet": by(PATCHES, SMOOTHED, ADAMW),
        "fixres": by(IMAGES, FROZEN, AGAIN),
        "gradient_centralization": by("a user-defined optimizer", IMAGES),
        "image_classification_efficientnet_fine_tuning": by(SHORTCUTS, FROZEN, AGAIN),
        "image_classification_from_scratch": by(SHORTCUTS, BEST),
        "image_classification_using_global_context_vision_transformer": by(PATCHES, SMOOTHED),
        "image_classification_with_vision_transformer": by(PATCHES, ADAMW, NORMALIZED),
        "image_classifier": KERAS_CV,
        "keypoint_detection": by(IMAGES, FROZEN),
        "latent_walk": KERAS_CV,
        "learnable_resizer": by(SHORTCUTS, SMOOTHED),
        "metric_learning": by(COMPARED),
        "mlp_image_classification": by("text: MLP-Mixer", PATCHES, PLATEAU, STOPS),
        "mnist_convnet": by(IMAGES),
        "object_detection_using_vision_transformer": by(
            PATCHES, "reduction sum_over_batch_size", STOPS, "ModelCheckpoint(save_weights_only)"
        ),
        "oxford_pets_image_segmentation": by(SEGMENTS, PIXELS, BEST),
        "pointnet_segmentation": by(
            "tagging",
            "activity_regularizer, add_loss",
            MIXING,
            "ExponentialDecay",
            "ModelCheckpoint(save_weights_only)",
        ),
        "siamese_contrastive": by("pairs: siamese network, contrastive loss"),
        "super_resolution_sub_pixel": by(PIXELS, PREDICTS, STOPS, BEST),
        "supervised_contrastive_learning": by(OWN_CALL, FROZEN),
        "token_learner": by(PATCHES, ADAMW, BEST),
        "video_transformers": by(TEXT, "ModelCheckpoint(save_weights_only)"),
    },
}
